"""Files of tensors that are written whole or not at all, with a checksum that says whether they still are."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lori.base_models.hub_files import open_tensors

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


def digest(tensors: Iterable[Tensor]) -> str:
    """sha256 over the bytes of tensors in their order: what an adapter's metadata say of its A's and B's."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


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


def write_checked(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """`write_tensors` with `header` (plain JSON) as the metadata, and in it a sha256 of header and tensors."""
    write_tensors(path, tensors, {**header, "sha256": _checksum(header, tensors)})


def read_checked(path: Path, file_format: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of `write_checked`: as they were written, so that what follows can trust them.

    Raises:
        ValueError: if the file is missing, of another format than `file_format`, damaged or edited.
    """
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(METADATA, "")
    if file_format not in text:
        raise ValueError(f"{path} is no {file_format} file: it was made by another tool, or for something else.")
    header: dict[str, Any] = {}
    try:
        header = json.loads(text)
        intact = header.pop("sha256") == _checksum(header, tensors)
    except (KeyError, ValueError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged or edited, its checksum differs: make or download it again.")
    return header, tensors


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    text = torch.frombuffer(bytearray(json.dumps(header, sort_keys=True).encode()), dtype=torch.uint8)
    return digest([text, *(tensors[name] for name in sorted(tensors))])
