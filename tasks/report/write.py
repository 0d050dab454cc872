"""The report: the paper's tables, from handles alone, as Markdown, HTML and CSV in one MLflow run."""

import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lori.choices.profiles import PLACES, Profile
from lori.evaluation.intervals import Intervals
from tasks import tracking
from tasks.report.analysis_tables import INTERFERENCE, MATCHED, NORMS, interference_table, matched_table, norms_table
from tasks.report.charts import Chart, Heat, charts_of, interference_heats, overlap_heats, sparsity_heats
from tasks.report.claim_tables import VERDICT, differences_table, scores_table, verdict_table, with_intervals
from tasks.report.comparison_tables import comparison_table, paper_table, to_metrics
from tasks.report.mlflow_rows import log_rows
from tasks.report.page import to_html
from tasks.report.paper_tables import TABLES, all_metrics
from tasks.report.scores import Cell, headline_means, of_table
from tasks.report.table import Table, Value, to_csv, to_markdown
from tasks.result_files import Pairs
from tasks.results import Handle, Runtime, canonical, step_key
from tasks.tracking.reports import Report, as_texts, find_reports

__all__ = ["Analyses", "Cell", "study_settings", "write_report"]
VERSION = 1
EFFORT = ("wall_seconds", "num_computed", "num_cached")  # settings that are no part of what a report is about
RECIPE = ("method", "rank", "alpha", "learning_rate", "batch_size", "max_length")
INCOMPLETE = "**Some cells failed: their rows are missing.**"
DIFFERENCES = """\
In points, paired by seed and test question. `a − b`: how much more a scores; `lori-s concat − lori-s` what a merge
loses; `kept` is the first domain after a new one, `before` the same before it, `learned` the new one, each averaged
over the new domains."""
CAPTIONS = {
    "claims": "The paper's figure 1 with the numbers of here, and 95 % intervals",
    "interference": "|cosine of ΔW| by layer and projection",
    "overlap": "Overlap of masks by layer and projection, beyond chance",
    "sparsity": "Sparsity by layer and projection, the paper's figure 3",
}
# Figures without a table of their own, and under whose heading they are
UNDER = {"overlap": "interference", "sparsity": "interference"}
FIGURES_PAGE, MASKED = "figures.html", "lori-s"
DRAWN = "figures.sha256"  # what the figures show
FIGURES = f"All figures with their numbers under the pointer: [{FIGURES_PAGE}]({FIGURES_PAGE})."
TOLD = {  # under a table's heading
    "claims": [VERDICT],
    "matched": [MATCHED],
    "norms": [NORMS],
    "differences": [DIFFERENCES],
    "interference": [INTERFERENCE],
}
COMPARED = "Means over domains, without over-refusal, as each base's newest complete report logged them."
FOOTNOTE = """\
Percent; ↑ higher is better, ↓ lower; – was not computed. Over-refusal is the share of harmless requests refused.
In brackets are 95 % intervals, from a bootstrap over seeds and test questions where rows are compared, from
three seeds on as wide as Student's t asks for; elsewhere 1.96 standard errors to each side, √(s²/n + mean of
the n seeds' squared errors), with s the standard deviation between seeds (all answer the same questions, so
that the sampling part does not shrink with n). A mean over domains is of their own metrics, without over-
refusal. One seed's interval is of the questions alone."""


@dataclass(frozen=True)
class Analyses:
    """What was computed of the cells together: `intervals` of rows and differences, and interference of `pairs`."""

    intervals: Intervals = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)


def study_settings(profile: Profile, base_model: str) -> dict[str, Any]:
    """What a study is about, whatever machine it is on: the profile, with the identity of the base model."""
    fields = {name: value for name, value in asdict(profile).items() if name not in (*PLACES, "base")}
    return {**fields, "base_model": base_model}


def write_report(
    cells: Sequence[Cell],
    analyses: Analyses,
    *,
    settings: Mapping[str, Any],
    is_complete: bool,
    runtime: Runtime,
) -> tuple[Handle, str]:
    """The report of `cells` as a run of its own, and its Markdown: first of all what it says of the paper's claims.

    The same settings and tables find the same run again and replace its files. `settings` are those of
    `study_settings`, what else the flow run was asked for and, in `EFFORT`, what it took, which is no part of the
    report's identity. No report is compared with one that is not `is_complete`.
    """
    tables = {name: build(of_table(cells, name), cells) for name, build in TABLES.items()}
    about = {name: value for name, value in canonical(settings).items() if name not in EFFORT}
    shown = [name for name, table in tables.items() if table.rows]
    key = step_key("report", VERSION, about, {"tables": shown})
    own = Report(
        base_model=about["base_model"],
        settings=as_texts(about),
        tables=frozenset(shown),
        versions=frozenset(handle.key.rpartition("-")[0] for cell in cells for handle in (cell.adapter, *cell.scores)),
        means=to_metrics(headline_means(cells)),
    )
    log_rows(tables, about, runtime)
    tables = {name: with_intervals(name, table, analyses.intervals) for name, table in tables.items()}
    tables = {"claims": verdict_table(analyses.intervals), **tables}
    tables["matched"] = matched_table(tables["ablations"])
    tables["norms"] = norms_table(tables["ablations"])
    tables["differences"] = differences_table(analyses.intervals)
    tables["interference"] = interference_table(analyses.pairs)
    tables["paper"] = paper_table(tables)
    tables["bases"] = comparison_table(own, find_reports(runtime, about["name"]))
    tags = own.tags(is_complete=is_complete)
    with (
        tracking.logged_run(runtime, key, "report", tags=tags, params=about) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        earlier = tracking.find_directory(runtime, run_id, "report")
        figures = _draw(tables, analyses.pairs, earlier, Path(scratch))
        markdown = _markdown(cells, tables, settings=settings, is_complete=is_complete, runtime=runtime)
        data = {**tables, "intervals": scores_table(analyses.intervals), "cells": all_metrics(cells)}
        _write_files(Path(scratch), _illustrated(markdown, tables, figures), data)
        uri, sha256 = tracking.log_directory(runtime, run_id, Path(scratch), "report")
        tracking.log_metrics(runtime, run_id, own.means)
    return Handle("report", key, "report", run_id, uri, sha256, {}, about), markdown


def _draw(tables: Mapping[str, Table], pairs: Pairs, earlier: Path | None, directory: Path) -> dict[str, str]:
    """Pictures of the tables, by the table under whose heading they belong, and all of them on an interactive page.

    Those of an `earlier` report are copied where it shows the same: drawing takes seconds.
    """
    charts = charts_of(tables)
    heats: dict[str, Sequence[Heat]] = {
        "interference": interference_heats(pairs),
        "overlap": overlap_heats(pairs),
        "sparsity": sparsity_heats(pairs, MASKED),
    }
    heats = {name: maps for name, maps in heats.items() if maps}
    titles = {name: table.title for name, table in tables.items()} | {name: CAPTIONS[name] for name in UNDER}
    if not charts and not heats:
        return {}
    shown = _digest(charts, heats)
    (directory / DRAWN).write_text(shown)
    figures = {name: f"{name}.png" for name in (*charts, *heats)}
    if earlier and (earlier / DRAWN).exists() and (earlier / DRAWN).read_text() == shown:
        for name in (*figures.values(), FIGURES_PAGE):
            shutil.copy(earlier / name, directory)
        return figures
    from tasks.report.charts_html import to_page
    from tasks.report.charts_png import draw_figures, draw_heats  # these two take seconds to import

    draw_figures(charts, directory)
    draw_heats(heats, directory)
    (directory / FIGURES_PAGE).write_text(to_page(titles, charts, heats))
    return figures


def _digest(charts: Mapping[str, Sequence[Chart]], heats: Mapping[str, Sequence[Heat]]) -> str:
    """Of what figures show, and of the code that draws them; of changed code that no commit has, never the same."""
    maps = {
        name: [(replace(heat, values=np.empty(0)), heat.values.tolist()) for heat in heats[name]] for name in heats
    }
    drawn_by = tracking.provenance()
    now = time.time() if drawn_by["lori.dirty"] == "true" else 0.0
    return hashlib.sha256(repr((charts, maps, drawn_by, now)).encode()).hexdigest()


def _write_files(directory: Path, markdown: str, tables: Mapping[str, Table]) -> None:
    (directory / "README.md").write_text(markdown)
    (directory / "index.html").write_text(to_html(markdown, directory))
    for name, table in tables.items():
        (directory / f"{name}.csv").write_text(to_csv(table))


def _illustrated(markdown: str, tables: Mapping[str, Table], figures: Mapping[str, str]) -> str:
    """With each figure under its table's heading, and a link to all of them."""
    if figures:
        first = markdown.index("\n\n## ")
        markdown = f"{markdown[:first]}\n\n{FIGURES}{markdown[first:]}"
    for name, file in reversed([*figures.items()]):  # each goes before those of the same heading
        title = tables[UNDER.get(name, name)].title
        heading, caption = f"## {title}\n\n", f"{title}, with 95 % intervals"
        markdown = markdown.replace(heading, f"{heading}![{CAPTIONS.get(name, caption)}]({file})\n\n")
    return markdown


def _markdown(
    cells: Sequence[Cell],
    tables: Mapping[str, Table],
    *,
    settings: Mapping[str, Any],
    is_complete: bool,
    runtime: Runtime,
) -> str:
    parts = ["# LoRI: results", _headline(cells, settings), *([] if is_complete else [INCOMPLETE])]
    for name, table in tables.items():
        parts += [f"## {table.title}", *TOLD.get(name, []), to_markdown(table)] if table.rows else []
    parts += [COMPARED] if tables["bases"].rows else []
    parts += [FOOTNOTE, "## How it was made"]
    parts += [to_markdown(table) for table in (_recipe_table(cells), _settings_table(settings)) if table.rows]
    return "\n\n".join([*parts, _origin(cells, runtime)]) + "\n"


def _headline(cells: Sequence[Cell], settings: Mapping[str, Any]) -> str:
    bases = sorted({cell.adapter.config["base_model"] for cell in cells})
    seeds = sorted({cell.row["seed"] for cell in cells})
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [f"Base model {_listed(bases)}", f"seeds {_listed(seeds)}", f"written {written}"]
    if "wall_seconds" in settings:
        cells_made = f"{settings['num_computed']} cells computed and {settings['num_cached']} cached"
        facts.append(f"{cells_made} in {_duration(settings['wall_seconds'])} by the flow run that wrote this")
    adapters = {cell.adapter.run_id: cell.adapter for cell in cells}.values()
    trained = sum(adapter.metrics.get("train_seconds", 0.0) for adapter in adapters)
    return f"{', '.join(facts)}; training alone, over all adapters, {_duration(trained)}."


def _recipe_table(cells: Sequence[Cell]) -> Table:
    """What the adapters say they were trained with: a row a method, or more where its domains differ."""
    epochs: dict[tuple[str, ...], dict[str, int]] = {}
    for cell in of_table(cells, "single") + of_table(cells, "continual"):
        config = cell.adapter.config
        if "num_epochs" in config:  # a published adapter doesn't say how it was trained
            recipe = tuple(str(config[name]) for name in RECIPE)
            epochs.setdefault(recipe, {})[config["domain"]] = config["num_epochs"]
    rows: list[dict[str, Value]] = []
    for recipe, of_domain in epochs.items():
        num_epochs = ", ".join(f"{domain} {num}" for domain, num in of_domain.items())
        rows.append({**dict(zip(RECIPE, recipe, strict=True)), "num_epochs": num_epochs})
    return Table("Recipe", {name: name for name in (*RECIPE, "num_epochs")}, rows)


def _settings_table(settings: Mapping[str, Any]) -> Table:
    rows: list[dict[str, Value]] = [
        {"name": name, "value": _listed(value)} for name, value in settings.items() if name not in EFFORT
    ]
    return Table("Settings", {"name": "setting", "value": "value"}, rows)


def _origin(cells: Sequence[Cell], runtime: Runtime) -> str:
    """Commit, versions and machines of the runs that the numbers come from, as MLflow has them."""
    run_ids = {scores.run_id for cell in cells for scores in cell.scores}
    tags = tracking.run_tags(runtime, sorted(run_ids))
    densities = sorted({cell.adapter.config["density"] for cell in of_table(cells, "merging")})
    lines = [f"- density of magnitude, TIES and DARE merges {_listed(densities)}"] if densities else []
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


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
