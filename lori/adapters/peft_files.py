"""Adapter files: a PEFT directory read a tensor at a time, without its base model, and written whole or not at all.

Only safetensors and JSON are read. Names in this project are module names (`model.layers.0.self_attn.q_proj`); PEFT's
file has `base_model.model.<module>.lora_A.weight`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lori.adapters.checked_files import METADATA, digest, write_tensors, written_whole
from lori.adapters.peft_settings import SETTINGS_FILE, TENSORS_FILE, read_settings
from lori.base_models.hub_files import open_tensors

LORA_A, LORA_B = ".lora_A.", ".lora_B."
PREFIX = "base_model.model."


def module_name(parameter_name: str) -> str:
    """`model.layers.0.self_attn.q_proj` for the name of its A or B, in the model or in an adapter file."""
    for factor in (LORA_A, LORA_B):
        parameter_name = parameter_name.split(factor)[0]
    return parameter_name.removeprefix(PREFIX)


@dataclass(frozen=True)
class AdapterFile:
    """An open LoRA adapter. `settings` is its adapter_config.json; tensors are read when they are asked for."""

    directory: Path
    settings: Mapping[str, Any]
    file: Any  # safetensors' handle

    @property
    def modules(self) -> list[str]:
        """The modules that have a B, in the order of their names."""
        return sorted(module_name(name) for name in self.file.keys() if LORA_B in name)  # noqa: SIM118

    @property
    def extras(self) -> list[str]:
        """Names of the tensors that are no factors: DoRA's magnitudes, embeddings that an older PEFT saved."""
        return sorted(name for name in self.file.keys() if LORA_A not in name and LORA_B not in name)  # noqa: SIM118

    @property
    def metadata(self) -> dict[str, Any]:
        """What `save_adapter` noted about how the adapter was made; empty for adapters of other tools."""
        return json.loads((self.file.metadata() or {}).get(METADATA, "{}"))

    def a(self, module: str) -> Float[Tensor, "rank d_in"]:
        """A of a module, as stored."""
        return self.file.get_tensor(f"{PREFIX}{module}.lora_A.weight")

    def b(self, module: str) -> Float[Tensor, "d_out rank"]:
        """B of a module, as stored."""
        return self.file.get_tensor(f"{PREFIX}{module}.lora_B.weight")

    def rank(self, module: str) -> int:
        """The rank that the settings say it has."""
        return int(_of_pattern(self.settings.get("rank_pattern"), module, self.settings["r"]))

    def scaling(self, module: str) -> float:
        """What b @ a is multiplied by: alpha / rank, or alpha / √rank with rsLoRA (PEFT, `LoraLayer.update_layer`)."""
        rank = self.rank(module)
        alpha = _of_pattern(self.settings.get("alpha_pattern"), module, self.settings["lora_alpha"])
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank


def _of_pattern(pattern: Mapping[str, int | float] | None, module: str, default: int | float) -> int | float:
    """PEFT's rule (`get_pattern_key`): the first key that the end of the module's name matches."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def check_digests(adapter: AdapterFile) -> None:
    """Whether A's, B's and scaling are those that were saved. Adapters of other tools have none: taken as they are.

    Raises:
        ValueError: if they are not.
    """
    noted = adapter.metadata.get("scaling")
    if noted is not None and any(adapter.scaling(module) != noted for module in adapter.modules):
        raise ValueError(
            f"{adapter.directory / SETTINGS_FILE} was changed after it was saved: alpha and rank gave a scaling of"
            f" {noted}. Restore it, or train it again."
        )
    for factor, read in (("a", adapter.a), ("b", adapter.b)):
        noted = adapter.metadata.get(f"{factor}_sha256")
        if noted is not None and noted != digest(map(read, adapter.modules)):
            raise ValueError(
                f"{adapter.directory} was changed after it was saved: its {factor.upper()}'s are not those of the"
                f" digest in its metadata. Restore it, or train it again."
            )


@contextmanager
def open_adapter(directory: Path) -> Iterator[AdapterFile]:
    """The adapter in `directory`, open for reading.

    Raises:
        ValueError: if there is none, if it is damaged, or if it is not LoRA's.
    """
    settings = read_settings(directory)
    with open_tensors(directory / TENSORS_FILE) as file:
        adapter = AdapterFile(directory, settings, file)
        if not adapter.modules:
            raise ValueError(f"{directory / TENSORS_FILE} holds no LoRA factors: not an adapter.")
        yield adapter


def write_adapter(
    directory: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    metadata: Mapping[str, Any],
    stream: Iterable[Tensor] = (),
) -> None:
    """A PEFT directory of `tensors` (PEFT's names), the same bytes in every process; `stream`: see `write_tensors`."""
    with written_whole(directory) as partial:
        write_tensors(partial / TENSORS_FILE, tensors, metadata, stream)
        (partial / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True, default=sorted))
