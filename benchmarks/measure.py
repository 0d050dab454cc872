"""What the benchmarks share: interleaved timing, bytes that autograd keeps, peak memory, and the JSON beside them."""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent


def interleave(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round; every other round goes backwards, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works) if number % 2 else reversed(list(works)):
            started = time.perf_counter()
            works[name]()
            _wait()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """The median over rounds of ours / theirs in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def saved_bytes(forward: Callable[[], Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, without the storages of `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, tuple[int, Tensor]] = {}  # holds the tensors: a freed address would be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(size for size, _ in kept.values())
    del output
    return total


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that `work` allocates at any time beyond what was there: CUDA's own count, or the CPU allocator's."""
    if torch.cuda.is_available():
        gc.collect()  # a trainer and its optimizer refer to each other: what they hold would be freed halfway
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def environment() -> dict[str, Any]:
    """Where and with what it was measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    names = ("torch", "transformers", "peft")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in names},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print the rows as a Markdown table, and write them to `benchmarks/<name>.json`."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column, "")) for column in columns] for row in rows)]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines), flush=True)
    document = {**environment(), **facts, "rows": rows}
    (HERE / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def goal(what: str, value: float, limit: str, bound: float) -> dict[str, Any]:
    """One line of a table of figures to reach; `limit` is ≤ or ≥."""
    reached = value <= bound if limit == "≤" else value >= bound
    return {"what": what, "measured": value, "goal": f"{limit} {bound:g}", "reached": "yes" if reached else "no"}
