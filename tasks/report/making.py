"""What the report says of itself: what it is of, what that took, what it lacks for a verdict, and how it was made."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lori.choices.profiles import COPIES, PROFILES
from lori.evaluation.claims import MIN_SEEDS, OPEN
from lori.evaluation.intervals import Intervals
from tasks import tracking
from tasks.report.claim_tables import judged, verdicts
from tasks.report.scores import Cell, of_table
from tasks.report.table import Table, Value, group_by, to_markdown
from tasks.results import Runtime, canonical

EFFORT = ("wall_seconds", "num_computed", "num_cached")  # settings that are no part of what a report is about
EFFORT_FILE = "effort.json"
RECIPE = ("method", "rank", "alpha", "learning_rate", "batch_size", "max_length")
# Settings that a command repeats where they are not the profile's
REPEATED = ("base_model", "rank", "sparsity", "scope", "density")
INCOMPLETE = "**Some cells failed: their rows are missing.**"


@dataclass(frozen=True)
class Effort:
    """What a flow run computed of the study, in how many seconds, and when it was over."""

    ended: str
    num_computed: int
    seconds: float


def efforts(earlier: Path | None, settings: Mapping[str, Any]) -> list[Effort]:
    """One for each flow run that computed cells: those that the `earlier` report knows, and the one that writes this.

    A flow run that finds everything in the cache is none of them: it has computed nothing that is reported.
    """
    file = earlier / EFFORT_FILE if earlier else None
    known = [Effort(**each) for each in json.loads(file.read_text())] if file and file.exists() else []
    own = Effort(_now(), settings["num_computed"], settings["wall_seconds"])
    return [*known, own] if own.num_computed else known


def save_efforts(found: Sequence[Effort], directory: Path) -> None:
    """For the next report of the same study."""
    (directory / EFFORT_FILE).write_text(json.dumps([asdict(effort) for effort in found]))


def opening(
    cells: Sequence[Cell],
    settings: Mapping[str, Any],
    found: Sequence[Effort],
    intervals: Intervals,
    *,
    is_complete: bool,
) -> list[str]:
    """What the report is of, the verdicts, and what they lack: a paragraph each."""
    parts = [
        "# LoRI: results",
        _headline(cells, settings, found),
        "" if is_complete else INCOMPLETE,
        verdicts(intervals),
        _to_decide(_seeds(cells), settings, found, intervals),
    ]
    return [part for part in parts if part]


def _headline(cells: Sequence[Cell], settings: Mapping[str, Any], found: Sequence[Effort]) -> str:
    """Base, seeds, and what computing took."""
    bases = sorted({cell.adapter.config["base_model"] for cell in cells})
    adapters = {cell.adapter.run_id: cell.adapter for cell in cells}.values()
    trained = _duration(sum(adapter.metrics.get("train_seconds", 0.0) for adapter in adapters))
    computed = f"{sum(effort.num_computed for effort in found)} cells were computed in"
    computed += f" {_duration(sum(effort.seconds for effort in found))}"
    if not found:
        computed = f"All {settings['num_cached']} cells came from the cache"
    elif len(found) > 1:
        computed += f" by {len(found)} flow runs"
    about = f"Base model {_listed(bases)}, seeds {_listed(_seeds(cells))}; written {_now()}."
    return f"{about} {computed}; training alone, over all adapters, took {trained}."


def _to_decide(
    seeds: Sequence[int], settings: Mapping[str, Any], found: Sequence[Effort], intervals: Intervals
) -> str:
    """What computes the seeds that a verdict lacks, and about how long that takes; empty if no seed is missing."""
    is_open = OPEN in [verdict for _, verdict, _ in judged(intervals).values()]
    if not is_open or len(seeds) >= MIN_SEEDS:
        return ""
    name = settings["name"]
    if name in COPIES:
        command = f"`python -m flows claims --profile {COPIES[name]}`"
        return f"The profile {name} trains too briefly for a verdict: {command} computes one that means something."
    missing = len({*range(MIN_SEEDS)} - {*seeds})
    told = f"This report has {len(seeds)} seed{'s' * (len(seeds) > 1)}; a verdict takes {MIN_SEEDS}."
    told += f" `python -m flows claims --profile {name}{_changes(settings)}` computes the {missing} that are missing"
    if not found:
        return f"{told}."
    num_cells = settings["num_computed"] + settings["num_cached"]
    pace = sum(effort.seconds for effort in found) / sum(effort.num_computed for effort in found)
    return f"{told}: about {_roughly(pace * num_cells / len(seeds) * missing)} at the pace of this study."


def _changes(settings: Mapping[str, Any]) -> str:
    """The parameters that ask for these settings where they are not those of their profile."""
    profile = PROFILES[settings["name"]]
    usual = {**canonical(profile), "base_model": profile.base.name}
    asked = {**usual, **settings, "base_model": settings["base_model"].partition("@")[0]}
    return "".join(f" -p {name}={asked[name]}" for name in REPEATED if asked[name] != usual[name])


def making(cells: Sequence[Cell], settings: Mapping[str, Any], found: Sequence[Effort], runtime: Runtime) -> list[str]:
    """How it was made, in Markdown: recipe, settings, and where the numbers come from."""
    tables = [_recipe_table(cells), _settings_table(settings)]
    return [*(to_markdown(table) for table in tables if table.rows), _origin(cells, found, runtime)]


def _recipe_table(cells: Sequence[Cell]) -> Table:
    """What the adapters say they were trained with: a row a method, or more where its domains differ."""
    configs = [cell.adapter.config for cell in (*of_table(cells, "single"), *of_table(cells, "continual"))]
    trained = [config for config in configs if "num_epochs" in config]  # a published adapter doesn't say how
    rows: list[dict[str, Value]] = []
    for recipe, group in group_by(trained, lambda config: tuple(str(config[name]) for name in RECIPE)).items():
        num_epochs = {config["domain"]: config["num_epochs"] for config in group}
        epochs = ", ".join(f"{domain} {num}" for domain, num in num_epochs.items())
        rows.append({**dict(zip(RECIPE, recipe, strict=True)), "epochs": epochs})
    return Table("Recipe", {name: name.replace("_", " ").capitalize() for name in (*RECIPE, "epochs")}, rows)


def _settings_table(settings: Mapping[str, Any]) -> Table:
    rows: list[dict[str, Value]] = [
        {"name": name, "value": _listed(value)} for name, value in settings.items() if name not in EFFORT
    ]
    return Table("Settings", {"name": "Setting", "value": "Value"}, rows)


def _origin(cells: Sequence[Cell], found: Sequence[Effort], runtime: Runtime) -> str:
    """Commit, versions and machines of the runs that the numbers come from, as MLflow has them."""
    run_ids = {scores.run_id for cell in cells for scores in cell.scores}
    tags = tracking.run_tags(runtime, sorted(run_ids))
    densities = sorted({cell.adapter.config["density"] for cell in of_table(cells, "merging")})
    lines = [f"- {each.num_computed} cells computed in {_duration(each.seconds)} until {each.ended}" for each in found]
    lines += [f"- density of magnitude, TIES and DARE merges {_listed(densities)}"] if densities else []
    lines += [f"- commit {commit} ({count} runs)" for commit, count in Counter(map(_commit, tags)).most_common()]
    names = [name for name in tracking.provenance() if name not in ("lori.commit", "lori.dirty")]
    lines += [
        f"- {name.removeprefix('lori.')} {_listed(sorted({tag[name] for tag in tags if name in tag}))}"
        for name in names
    ]
    return "\n".join(lines)


def _commit(tags: Mapping[str, str]) -> str:
    dirty = {"true": ", **with uncommitted changes**", "false": ""}.get(tags["lori.dirty"], ", state unknown")
    return f"`{tags['lori.commit'][:12]}`{dirty}"


def _seeds(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.row["seed"] for cell in cells})


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _roughly(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes} minute{'s' * (minutes > 1)}"
