"""A plan as Markdown: what the cells take together, where the memory goes, what does not fit, and what was assumed."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields

from lori.config import DataConfig, EvalConfig, MaskConfig, MergeConfig, TrainConfig
from lori.plan.cell import Cell
from lori.plan.cell_costs import BYTES_PER_TOKEN, PlanRow, gpu_of
from lori.plan.costs import ASSUMED_BANDWIDTH_SHARE, ASSUMED_UTILISATION, USABLE_SHARE, Memory
from lori.plan.make import Plan

COLUMNS = ("step", "what", "cells", "trainable", "peak GB", "tokens", "PFLOP", "GPU hours", "disk GB")


def to_markdown(plan: Plan) -> str:
    """All of it; cells that differ in their seed or adapter alone are one line, with the largest peak and the sums."""
    groups: dict[tuple[str, str], list[PlanRow]] = defaultdict(list)
    for row in plan.rows:
        groups[row.cell.step, _what(row.cell)].append(row)
    steps = list(dict.fromkeys(step for step, _ in groups))
    table = [_line(*labels, rows) for labels, rows in sorted(groups.items(), key=lambda item: steps.index(item[0][0]))]
    paragraphs = [_head(plan), _table(COLUMNS, [*table, _line("all", "", plan.rows)]), _memory(plan), *_problems(plan)]
    return "\n\n".join([*filter(None, paragraphs), "\n".join(f"- {note}" for note in _notes(plan))]) + "\n"


def _what(cell: Cell) -> str:
    """What a line calls a cell."""
    config = cell.config
    trained = [given.config for given in cell.sources if isinstance(given.config, TrainConfig)]
    if isinstance(config, TrainConfig):
        first = "".join(f" after {given.domain}" for given in trained)
        return f"{config.method} {config.domain}{first}"
    if isinstance(config, MergeConfig):
        return f"{'+'.join(dict.fromkeys(given.method for given in trained))} {config.method}"
    if isinstance(config, MaskConfig):
        return f"sparsity {config.sparsity:g} {config.scope}"
    if isinstance(config, DataConfig):
        return f"{config.domain} {config.split}"
    return config.domain if isinstance(config, EvalConfig) else cell.name


def _line(step: str, what: str, rows: Sequence[PlanRow]) -> list[str]:
    """Numbers that are zero are left out: nothing of the kind happens there."""
    trainable = max(row.num_trainable for row in rows)
    peak, flops = max(row.memory.peak for row in rows), sum(row.flops for row in rows)
    tokens, hours = sum(row.tokens for row in rows), sum(row.gpu_seconds for row in rows) / 3600
    disk = sum(row.disk_bytes for row in rows)
    return [
        step,
        what,
        f"{len(rows):,}",
        f"{trainable:,}" if trainable and step != "all" else "",
        f"{peak / 1e9:,.1f}" if peak else "",
        f"{tokens:,}" if tokens else "",
        f"{flops / 1e15:,.1f}" if flops else "",
        f"{hours:,.2f}" if hours else "",
        f"{disk / 1e9:,.3f}" if disk else "",
    ]


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    aligned = ["---" if column in ("step", "what") else "---:" for column in columns]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, aligned, *lines))


def _head(plan: Plan) -> str:
    hardware = plan.hardware
    hours = sum(row.gpu_seconds for row in plan.rows) / 3600
    disk = sum(row.disk_bytes for row in plan.rows) / 1e9
    checkpointing = ", gradient checkpointing" if hardware.gradient_checkpointing else ""
    return (
        f"Plan of {len(plan.rows):,} cells on {plan.base} ({plan.num_parameters:,} parameters),"
        f" {hardware.num_gpus} × {hardware.gpu or 'cpu'}, micro-batches of {hardware.micro_batch_tokens:,}"
        f" tokens{checkpointing}: **{hours:,.1f} GPU hours**, {hours / hardware.num_gpus:,.1f} hours if no GPU ever"
        f" waits, and {disk:,.1f} GB of files. Nothing was computed."
    )


def _memory(plan: Plan) -> str:
    """GB by part of the fullest training of each method, and of the fullest evaluation."""
    fullest: dict[str, Memory] = {}
    for row in plan.rows:
        name = row.cell.config.method if isinstance(row.cell.config, TrainConfig) else row.cell.step
        if row.memory.peak > fullest.get(name, Memory()).peak:
            fullest[name] = row.memory
    parts = [field.name for field in fields(Memory)]
    lines = [
        [name, *(f"{getattr(memory, part) / 1e9:,.2f}" for part in parts), f"{memory.peak / 1e9:,.2f}"]
        for name, memory in fullest.items()
    ]
    columns = ["step", *(part.replace("kv_cache", "KV cache") for part in parts), "peak"]
    return f"Memory of the fullest GPU, in GB:\n\n{_table(columns, lines)}" if lines else ""


def _problems(plan: Plan) -> list[str]:
    if not plan.problems:
        return []
    lines = [
        f"- {problem.cell.step} {problem.cell.name}: {problem.peak / 1e9:,.1f} GB. {problem.remedy}"
        for problem in plan.problems
    ]
    usable = plan.problems[0].usable / 1e9
    return [f"**{len(lines)} of {len(plan.rows)} cells do not fit into {usable:,.1f} GB:**", "\n".join(lines)]


def _notes(plan: Plan) -> list[str]:
    gpu, host = gpu_of(plan.hardware), max((row.host_bytes for row in plan.rows), default=0)
    notes = [
        "GB are 10⁹ bytes. Trainable parameters, tokens to train on and adapter files (without their headers) are"
        " exact. What another cell reads lies once more in the cache of the machine that reads it.",
        "Peaks follow from the shapes of the largest micro-batch or batch of prompts, all parts at once. Of a GPU"
        f" {USABLE_SHARE:.0%} is taken as usable: an assumption about CUDA's context and the allocator.",
        f"Hours assume {ASSUMED_UTILISATION:.0%} of {gpu.bf16_flops / 1e12:,.3g} TFLOP/s in bf16 or"
        f" {gpu.fp32_flops / 1e12:,.3g} in fp32, and to write tokens {ASSUMED_BANDWIDTH_SHARE:.0%} of"
        f" {gpu.bandwidth / 1e12:,.3g} TB/s: assumptions, not measurements. Loading, masks, merges and scoring are"
        " not in them.",
        "Tokens and hours of evaluations are upper bounds: every sample as long as it may become and none shared,"
        f" though completions end early. Their files, and datasets, are guessed at {BYTES_PER_TOKEN} bytes a token.",
    ]
    if host:
        notes.append(f"A merge of models without factors needs {host / 1e9:,.0f} GB of the machine's memory.")
    if not plan.is_like_llama:
        notes.append(
            "Activations were derived for Llama's layers: of this architecture they are a guess, and may be a third of"
            " it or 1.5 times as much."
        )
    return notes
