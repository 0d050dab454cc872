"""The same result is the same bytes in every process: what is retried must not differ from what was logged."""

import os
import subprocess
import sys

MAKE = """
import sys
from pathlib import Path
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig
from lori.adapters.masks import extract_masks, save_masks
from lori.adapters.attach import attach, save_adapter
from lori.base_models.loading import load_base
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

out, config = Path(sys.argv[1]), train_config(profile("smoke"), "lori-d", "nlu", seed=0)
save_adapter(attach(load_base(BASE_MODELS["scale"]), config), out / "adapter", config)
save_masks(extract_masks(out / "adapter", MaskConfig(0.9, "model")), out / "mask")
"""


def files_of_a_process(directory, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", MAKE, str(directory)], env=environment, check=True, capture_output=True)
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_adapter_and_mask_have_the_same_bytes_whatever_the_hash_seed(tmp_path):
    first, second = files_of_a_process(tmp_path / "a", "1"), files_of_a_process(tmp_path / "b", "2")
    assert first.keys() == second.keys() >= {"adapter/adapter_config.json", "mask/lori_mask.safetensors"}
    assert [name for name in first if first[name] != second[name]] == []
