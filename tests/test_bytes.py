"""The same result is the same bytes in every process: what is retried must not differ from what was logged."""

import os
import subprocess
import sys
from pathlib import Path

from lori.adapters.attach import attach, save_adapter
from lori.adapters.masks import extract_masks, save_masks
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

OTHER_SEED = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # than that of this process
MAKE = "import sys; from pathlib import Path; from test_bytes import make; make(Path(sys.argv[1]))"


def make(out):
    config = train_config(profile("smoke"), "lori-d", "nlu", seed=0)
    save_adapter(attach(load_base(BASE_MODELS["scale"]), config), out / "adapter", config)
    save_masks(extract_masks(out / "adapter", MaskConfig(0.9, "model")), out / "mask")


def files_in(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_adapter_and_mask_have_the_same_bytes_whatever_the_hash_seed(tmp_path):
    make(tmp_path / "here")
    environment = {**os.environ, "PYTHONHASHSEED": OTHER_SEED, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", MAKE, str(tmp_path / "there")]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    first, second = files_in(tmp_path / "here"), files_in(tmp_path / "there")
    assert first.keys() == second.keys() >= {"adapter/adapter_config.json", "mask/lori_mask.safetensors"}
    assert [name for name in first if first[name] != second[name]] == []
