"""What CPUs cannot show: `make test-gpu`, on a machine with a CUDA device."""

import os
import subprocess
import sys

import pytest
import torch
from test_training import Killed, config_of, dying, fit, some_masks, trained, without_times

from lori.adapters.attach import attach, sparsify
from lori.adapters.attached import lora_layers
from lori.adapters.layer import FlatValues
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS, check_device
from lori.config import TrainRuntime
from lori.datasets.rows import make_rows
from lori.evaluation.answers import generate
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config, eval_config
from tasks.engine.gpus import environment_of, gpu_ids

SCALE = BASE_MODELS["scale"]

METHODS = ["full", "lora", "dora", "lori-d", "lori-s"]
LONG_ROWS = [  # of several blocks in attention's kernels, and padded
    {"input_ids": list(range(10, 10 + length)), "labels": [-100] * 8 + list(range(18, 10 + length))}
    for length in range(320, 400, 10)
]


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("There is no GPU here, and these tests are of nothing else.")


def adapted(name, device, **changes):
    """With masks drawn on the CPU: torch's generators of CPUs and GPUs draw differently."""
    dtype = "float32" if name == "full" else changes.get("dtype", "float32")  # as tasks/train.py loads it
    model = attach(load_base(SCALE, device, dtype=dtype), config_of(name, **changes))
    if name != "lori-s":
        return model
    return sparsify(model, some_masks(attach(load_base(SCALE), config_of(name))))


@pytest.mark.parametrize("name", METHODS)
def test_training_follows_that_of_a_cpu(name):
    curves, weights = [], []
    for device in ("cpu", "cuda"):
        model = adapted(name, device)
        curves.append([point["train/loss"] for point in fit(model, name, learning_rate=1e-3)])
        weights.append({parameter: value.cpu() for parameter, value in trained(model).items()})
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    for parameter, value in weights[1].items():
        # AdamW's first steps are ±lr whatever the gradient's size, so a gradient near 0 may take either sign
        assert ((value - weights[0][parameter]).abs() < 1e-4).float().mean() > 0.99, parameter


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path, monkeypatch):
    def run(checkpoint_dir):
        model = adapted(name, "cuda", dtype="bfloat16")
        runtime = TrainRuntime(micro_batch_tokens=800, checkpoint_dir=checkpoint_dir, checkpoint_every=2)
        return model, fit(model, name, rows=LONG_ROWS, batch_size=3, dtype="bfloat16", runtime=runtime)

    undisturbed, curve = run(None)
    with monkeypatch.context() as patch:
        patch.setattr(
            "lori.training.trainer.summed_token_loss", dying(after=8)
        )  # two rows a part: in the middle of step 5
        with pytest.raises(Killed):
            run(str(tmp_path))
    resumed, resumed_curve = run(str(tmp_path))
    expected = trained(undisturbed)
    assert all(torch.equal(value, expected[parameter]) for parameter, value in trained(resumed).items())
    assert without_times(resumed_curve) == without_times(curve)


def test_dense_bs_that_are_kept_give_the_bits_of_those_made_each_time(monkeypatch):
    kept = adapted("lori-s", "cuda", dtype="bfloat16")
    seen = []
    for layer in lora_layers(kept).values():
        layer.register_forward_hook(lambda layer, *_: seen.append(layer.lora_B["default"].dense.dtype))
    fit(kept, "lori-s", dtype="bfloat16")
    assert set(seen) == {torch.bfloat16}
    made = adapted("lori-s", "cuda", dtype="bfloat16")
    monkeypatch.setattr("lori.training.trainer.FlatValues", lambda layers, **_: FlatValues(layers, keep_dense=None))
    fit(made, "lori-s", dtype="bfloat16")
    pairs = zip(lora_layers(kept).values(), lora_layers(made).values(), strict=True)
    assert all(torch.equal(a.lora_B["default"].values, b.lora_B["default"].values) for a, b in pairs)


@pytest.mark.parametrize("domain", ["nlu", "math"])
def test_greedy_answers_are_those_of_a_cpu(domain):
    """But for a few, where two tokens are as likely but for rounding."""
    scale, tokenizer = profile("scale"), load_tokenizer(SCALE)
    examples, config = make_rows(data_config(scale, domain, "test"))[:100], eval_config(scale, domain)
    told = [generate(load_base(SCALE, device), tokenizer, examples, config) for device in ("cpu", "cuda")]
    answers = [[record["completions"] for record in records] for records in told]
    assert sum(one == other for one, other in zip(*answers, strict=True)) >= 97


def test_a_job_sees_the_gpus_of_its_slots_alone(monkeypatch):
    for name in ("LORI_GPUS", "CUDA_VISIBLE_DEVICES", "LORI_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    ids = gpu_ids()
    assert len(ids) == torch.cuda.device_count()
    check_device("cuda", "h200")
    counted = "import torch; print(torch.cuda.device_count())"
    for held, expected in ((ids[:1], "1"), (["cpu0"], "0")):
        environment = {**os.environ, **environment_of(held)}
        shown = subprocess.run([sys.executable, "-c", counted], env=environment, capture_output=True, text=True)
        assert shown.stdout.strip() == expected
    monkeypatch.setenv("LORI_GPUS", str(len(ids)))
    with pytest.raises(ValueError, match=f"There is no GPU {len(ids)} on this machine"):
        gpu_ids()
