"""Adapters as the authors published them: a PEFT directory of an older release, masks beside it, the hub's layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flows.deployments import published
from helpers.rows import real_data_dir
from helpers.small_base import small_llama
from lori.adapters.copy_published import copy_published
from lori.adapters.find_published import find_published, method_and_domain
from lori.adapters.masks import load_masks
from lori.config import PublishedConfig
from tasks.machine import local_runtime

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DENSE, SPARSE = "v1.0-LoRI-D_code_llama3_rank_32", "LoRI-S_math_llama3_rank_32"


def publish(base: Path, folder: Path, *, density: float) -> dict[str, torch.Tensor]:
    """What the authors' script leaves: PEFT's files, with settings of release 0.12, and the mask of B's; the mask."""
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    masks = {}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            masks[name] = torch.rand_like(parameter) < density
            parameter.data = torch.randn_like(parameter) * masks[name]
    model.save_pretrained(str(folder))
    written = json.loads((folder / "adapter_config.json").read_text())
    known = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "fan_in_fan_out")
    (folder / "adapter_config.json").write_text(json.dumps({name: written[name] for name in known}))
    (folder / "masks").mkdir()
    torch.save(masks, folder / "masks" / "0.9_mask.pt")
    return masks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    return small_llama(root / "bases" / "tiny", real_data_dir(root / "rows"))


@pytest.fixture(scope="module")
def adapters(base: Path) -> Path:
    folder = base.parents[1] / "adapters"
    for name, density in ((DENSE, 1.0), (SPARSE, 0.1)):
        publish(base, folder / name, density=density)
    return folder


def test_the_authors_names_say_method_and_domain() -> None:
    assert method_and_domain(f"tomg-group-umd/{SPARSE}") == ("lori-s", "math")
    assert method_and_domain("tomg-group-umd/LoRI-D_nlu_mistral7b_rank_64") == ("lori-d", "nlu")
    assert method_and_domain("someone/my-lora") == ("my-lora", "")


def test_files_and_mask_are_taken_along(adapters: Path, tmp_path: Path) -> None:
    config = find_published(SPARSE, str(adapters), "tiny@0")
    metrics = copy_published(config, str(adapters), tmp_path)
    theirs = load_file(adapters / SPARSE / "adapter_model.safetensors")
    ours = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    kept = torch.load(adapters / SPARSE / "masks" / "0.9_mask.pt", weights_only=True)
    prefix, suffix = "base_model.model.", ".lora_B.default.weight"
    masks = load_masks(tmp_path)
    assert {f"{prefix}{name}{suffix}" for name in masks} == set(kept)
    assert all(torch.equal(mask, kept[f"{prefix}{name}{suffix}"]) for name, mask in masks.items())
    assert metrics["num_trainable"] == metrics["mask_kept"] == sum(int(mask.sum()) for mask in kept.values())


def test_an_adapter_in_the_hubs_cache_is_found_by_its_commit(adapters: Path, tmp_path: Path, monkeypatch) -> None:
    commit, repository = "a" * 40, tmp_path / f"models--tomg-group-umd--{DENSE}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(adapters / DENSE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = f"tomg-group-umd/{DENSE}"
    assert find_published(name, None, "tiny@0") == PublishedConfig(name, commit, "tiny@0")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json"),
        (
            lambda folder: torch.save(
                {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": torch.ones(2, 2).bool()},
                folder / "masks" / "0.9_mask.pt",
            ),
            "mask",
        ),
    ],
)
def test_what_is_no_such_adapter_is_refused(
    spoil: Callable[[Path], None], message: str, base: Path, tmp_path: Path
) -> None:
    publish(base, tmp_path / "in" / DENSE, density=1.0)
    spoil(tmp_path / "in" / DENSE)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        copy_published(find_published(DENSE, str(tmp_path / "in"), "tiny@0"), str(tmp_path / "in"), tmp_path / "out")


def test_an_adapter_of_another_base_is_refused_although_it_would_fit(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my-lora"
    publish(base, folder, density=1.0)
    written = json.loads((folder / "adapter_config.json").read_text())
    said = {**written, "base_model_name_or_path": "mistralai/Mistral-7B-v0.1"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    assert find_published("my-lora", str(tmp_path), "mistral-7b@0").name == "my-lora"
    with pytest.raises(ValueError, match=r"my-lora was trained on mistralai/Mistral-7B-v0\.1.* not on llama-3-8b"):
        find_published("my-lora", str(tmp_path), "llama-3-8b@0")
    publish(base, tmp_path / "LoRI-S_math_mistral7b_rank_32", density=0.1)
    with pytest.raises(ValueError, match="trained on mistral-7b, as its name says, and not on llama-3-8b"):
        find_published("LoRI-S_math_mistral7b_rank_32", str(tmp_path), "llama-3-8b@0")


def test_the_flow_scores_each_on_its_own_domain_with_the_authors_prompts(
    state_dir: Path, base: Path, adapters: Path
) -> None:
    data_dir = base.parents[1] / "rows"
    done = published(
        adapters=[DENSE, SPARSE],
        profile="paper-smoke",
        base_model=str(base),
        adapters_dir=str(adapters),
        data_dir=str(data_dir),
    )
    assert done["computed"] == 6  # two adapters, two datasets, two scores
    client = MlflowClient(local_runtime().tracking_uri)
    experiment = client.get_experiment_by_name("lori-paper-smoke")
    runs = client.search_runs([experiment.experiment_id], "tags.`lori.role` = 'import'")
    scored = {run.data.tags["lori.method"]: set(run.data.metrics) for run in runs}
    assert "code/pass_at_1" in scored["lori-d"]
    assert "math/accuracy" in scored["lori-s"]
    assert "math/accuracy" not in scored["lori-d"]
