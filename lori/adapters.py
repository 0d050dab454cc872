"""Adapter files: a PEFT directory read a tensor at a time, without its base model, and written whole or not at all.

Only safetensors and JSON are read. Names in this project are module names (`model.layers.0.self_attn.q_proj`); PEFT's
file has `base_model.model.<module>.lora_A.weight`.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from lori.files import SETTINGS_FILE, TENSORS_FILE, open_tensors, read_settings

LORA_A, LORA_B = ".lora_A.", ".lora_B."
PREFIX = "base_model.model."
METADATA = "lori"  # the key of our JSON in a safetensors header
DTYPES = {  # safetensors' names
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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


def digest(tensors: Iterable[Tensor]) -> str:
    """sha256 over the bytes of tensors in their order: what an adapter's metadata say of its A's and B's."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], stream: Iterable[Tensor] = ()
) -> None:
    """A safetensors file with `metadata` as JSON under the key `lori`.

    A tensor on the meta device is a place for the next one of `stream`, in the order of names, so that a large file is
    written while it is made: safetensors' own writer wants everything at once. It also keeps metadata in a hash map,
    whose order differs between processes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # safetensors' order: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA: json.dumps(metadata, sort_keys=True)}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that the tensors start at a multiple of 8 bytes
    made = iter(stream)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = next(made) if tensors[name].is_meta else tensors[name]
            assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype), name
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its place at the end.

    An error leaves `directory` as it was. Where other files lie already, the new ones take their places one by one, so
    that a machine that dies just then may leave both. Of several processes all write and wait; the first one's stay.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's own is for the owner alone
        if is_first_process():
            _put(partial, directory)
        wait_for_all()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        for path in sorted(partial.iterdir(), reverse=True):  # tensors before the settings that declare them
            os.replace(path, directory / path.name)
    else:
        os.replace(partial, directory)


def is_first_process() -> bool:
    """Of those that torchrun started, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Until every process has come here: what the first one wrote can be read then."""
    if dist.is_initialized():
        dist.barrier()
