"""Which GPU a job may use: held by flock(2), so that a slot is free as soon as the last process that uses it is gone.

`LORI_GPUS` names the GPUs of this machine that are ours, as `CUDA_VISIBLE_DEVICES` would: `0,1` or UUIDs. Ids such as
`cpu0` are slots without a device. What needs no GPU takes one of `LORI_WORKERS` such slots, one a core if unset.
"""

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

POLL_SECONDS = 0.5
CPU_SLOT = re.compile(r"cpu\d+")
MAX_WORKERS = 8  # where nobody said how many


def num_workers() -> int:
    """`LORI_WORKERS`; if unset, one for each core that this process may use, and 8 at most.

    Raises:
        ValueError: if it is no whole number above 0.
    """
    asked = os.environ.get("LORI_WORKERS") or str(min(MAX_WORKERS, len(os.sched_getaffinity(0))))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"LORI_WORKERS={asked!r} is not a number of worker processes: 1 or more.")
    return int(asked)


def gpu_ids() -> list[str]:
    """The GPUs that jobs may use: `LORI_GPUS`, else `CUDA_VISIBLE_DEVICES`, else all; none if `LORI_DEVICE` is cpu.

    Raises:
        ValueError: if one of them does not exist, or is named twice.
    """
    asked = next((os.environ[name] for name in ("LORI_GPUS", "CUDA_VISIBLE_DEVICES") if name in os.environ), None)
    ids = [word.strip() for word in (asked or "").split(",") if word.strip()]
    if asked is not None and all(map(CPU_SLOT.fullmatch, ids)):
        return _checked(ids, present=ids)
    if os.environ.get("LORI_DEVICE") == "cpu":
        return []
    numbers, uuids = _gpus_of_this_machine()
    return numbers if asked is None else _checked(ids, [*numbers, *uuids])


def _checked(ids: list[str], present: Sequence[str]) -> list[str]:
    if unknown := [name for name in ids if name not in present]:
        there = f"nvidia-smi lists {', '.join(present)}" if present else "nvidia-smi lists none"
        raise ValueError(
            f"There is no GPU {', '.join(unknown)} on this machine ({there}): correct LORI_GPUS or"
            " CUDA_VISIBLE_DEVICES; cpu0, cpu1, … are slots without a GPU."
        )
    if len(set(ids)) < len(ids):
        raise ValueError(f"A GPU is named twice: {', '.join(ids)}. Correct LORI_GPUS or CUDA_VISIBLE_DEVICES.")
    return ids


@cache
def _gpus_of_this_machine() -> tuple[list[str], list[str]]:
    """The number of each GPU, and the UUIDs of all of them and of their MIG parts."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return [], []
    if done.returncode:  # not a machine without GPUs, on which everything would be computed by the CPU
        raise ValueError(f"nvidia-smi fails ({(done.stdout + done.stderr).strip()}): mend it, or set LORI_DEVICE=cpu.")
    listed = done.stdout
    return re.findall(r"^GPU (\d+): ", listed, re.M), re.findall(r"\(UUID: ((?:GPU|MIG)-[\w/-]+)\)", listed)


@contextmanager
def acquire_gpus(num_gpus: int, *, while_waiting: Callable[[], None]) -> Iterator[tuple[list[str], list[int]]]:
    """Hold `num_gpus` GPUs of this machine, or for 0 a slot without one: their ids, and descriptors that hold them.

    All or none, so that two jobs of two GPUs never wait for each other. A child that gets the descriptors
    (`pass_fds`) keeps the slot until it ends, even if this process is killed. `while_waiting` is called now and then
    until they are free, and may raise.

    Raises:
        ValueError: if this machine does not have as many.
    """
    ids = gpu_ids()
    if num_gpus == 0 or not ids:  # without any GPU a single job is computed on the CPU
        ids = [f"cpu{number}" for number in range(num_workers())]
    wanted = max(num_gpus, 1)
    if wanted > len(ids):
        raise ValueError(f"A job wants {wanted} GPUs at once; this machine has {len(ids)} for it: {', '.join(ids)}.")
    while (descriptors := _try(ids, wanted)) is None:
        while_waiting()
        time.sleep(POLL_SECONDS)
    try:
        yield list(descriptors), list(descriptors.values())
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _try(ids: Sequence[str], wanted: int) -> dict[str, int] | None:
    taken: dict[str, int] = {}
    for name in ids:
        descriptor = _open(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        taken[name] = descriptor
        if len(taken) == wanted:
            return taken
    for descriptor in taken.values():
        os.close(descriptor)
    return None


def _open(name: str) -> int:
    """The lock file of a slot, one for all users of this machine."""
    path = Path(os.environ.get("LORI_LOCK_DIR", "/tmp/lori-slots")) / f"{name}.lock"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # where it is another user's, O_CREAT would be refused
    except FileNotFoundError:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o1777)
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.fchmod(descriptor, 0o666)
        return descriptor


def environment_of(ids: Sequence[str]) -> dict[str, str]:
    """What makes a process see just these slots' devices."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(name for name in ids if not CPU_SLOT.fullmatch(name))}
