"""The report: the paper's tables, from handles alone, as Markdown, HTML and CSV in one MLflow run."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lori.choices.profiles import PLACES, Profile
from lori.evaluation.intervals import Intervals
from tasks import tracking
from tasks.report.analysis_tables import INTERFERENCE, MATCHED, NORMS, interference_table, matched_table, norms_table
from tasks.report.charts import Chart, Heat, charts_of, interference_heats, overlap_heats, sparsity_heats
from tasks.report.claim_tables import (
    CAUSES,
    CONTEXT,
    RULES,
    claim_tables,
    differences_table,
    scores_table,
    with_intervals,
)
from tasks.report.comparison_tables import comparison_table, paper_table, to_metrics
from tasks.report.making import EFFORT, efforts, making, opening, save_efforts
from tasks.report.mlflow_rows import log_rows
from tasks.report.page import to_html
from tasks.report.paper_tables import TABLES, all_metrics
from tasks.report.scores import Cell, of_table
from tasks.report.table import Table, to_csv, to_markdown
from tasks.result_files import Pairs
from tasks.results import Handle, Runtime, canonical, step_key
from tasks.tracking.reports import Report, as_texts, find_reports

__all__ = ["Analyses", "Cell", "study_settings", "write_report"]
VERSION = 1
DIFFERENCES = """\
In points, paired by seed and test question. `a − b` is how much more a scores than b: `lori-s concat − lori-s`, for
example, is what a merge costs. `kept` is the first domain after a new one, `before` the same domain before it, and
`learned` the new one, each averaged over the new domains."""
COMPARED = "Means over domains, without over-refusal, as the newest complete report of each base logged them."
TOLD = {  # under a table's heading
    "claims": RULES,
    "causes": CAUSES,
    "context": CONTEXT,
    "matched": MATCHED,
    "norms": NORMS,
    "differences": DIFFERENCES,
    "interference": INTERFERENCE,
    "bases": COMPARED,
}
FIGURES = {  # by the table under whose heading they are, figures that are not of that table alone, with their captions
    "claims": {"claims": "The paper's figure 1 with the numbers of this run, and 95 % intervals"},
    "interference": {
        "interference": "Cosine of two domains' updates, in magnitude, by layer and projection",
        "overlap": "Overlap of two domains' masks beyond chance, by layer and projection",
        "sparsity": "Sparsity of each domain's mask by layer and projection: the paper's figure 3",
    },
}
FIGURES_PAGE, MASKED = "figures.html", "lori-s"
DRAWN = "figures.sha256"  # what the figures show
LINK = f"All figures, with their numbers under the pointer: [{FIGURES_PAGE}]({FIGURES_PAGE})."
FOOTNOTE = """\
Percent; ↑ higher is better, ↓ lower; – was not computed. Over-refusal is the share of harmless requests that are
refused; a mean over domains leaves it out. In brackets are 95 % intervals. Where rows are compared they come from a
bootstrap over seeds and test questions, and from three seeds on they are as wide as Student's t requires. Elsewhere
they are 1.96 standard errors to each side, √(s²/n + mean of the n seeds' squared errors), with s the standard
deviation between seeds. More seeds do not shrink the second term: all of them answer the same questions. The interval
of a single seed is of the questions alone."""


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
    own = _without_files(cells, tables, about)
    key = step_key("report", VERSION, about, {"tables": [name for name in tables if name in own.tables]})
    log_rows(tables, about, runtime)
    tables = _all_tables(tables, analyses)
    tables["bases"] = comparison_table(own, find_reports(runtime, about["name"]))
    tags = own.tags(is_complete=is_complete)
    with (
        tracking.logged_run(runtime, key, "report", tags=tags, params=about) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        earlier, directory = tracking.find_directory(runtime, run_id, "report"), Path(scratch)
        computed = efforts(earlier, settings)
        save_efforts(computed, directory)
        parts = opening(cells, settings, computed, analyses.intervals, is_complete=is_complete)
        ending = [FOOTNOTE, "## How it was made", *making(cells, settings, computed, runtime)]
        figures = _draw(tables, analyses.pairs, earlier, directory)
        illustrated = [*parts, *([LINK] if figures else []), *_sections(tables, figures), *ending]
        data = {**tables, "intervals": scores_table(analyses.intervals), "cells": all_metrics(cells)}
        _write_files(directory, "\n\n".join(illustrated) + "\n", data)
        uri, sha256 = tracking.log_directory(runtime, run_id, directory, "report")
        tracking.log_metrics(runtime, run_id, own.means)
    markdown = "\n\n".join([*parts, *_sections(tables, []), *ending]) + "\n"  # Prefect has no place for pictures
    return Handle("report", key, "report", run_id, uri, sha256, {}, about), markdown


def _without_files(cells: Sequence[Cell], tables: Mapping[str, Table], about: Mapping[str, Any]) -> Report:
    """What later reports read of this one."""
    handles = [handle for cell in cells for handle in (cell.adapter, *cell.scores)]
    return Report(
        base_model=about["base_model"],
        settings=as_texts(about),
        tables=frozenset(name for name, table in tables.items() if table.rows),
        versions=frozenset(handle.key.rpartition("-")[0] for handle in handles),
        means=to_metrics(tables),
    )


def _all_tables(tables: Mapping[str, Table], analyses: Analyses) -> dict[str, Table]:
    """The paper's tables with the intervals of the bootstrap, between the claims and what explains them."""
    paper = {name: with_intervals(name, table, analyses.intervals) for name, table in tables.items()}
    return {
        **claim_tables(analyses.intervals),
        **paper,
        "matched": matched_table(paper["ablations"]),
        "norms": norms_table(paper["ablations"]),
        "differences": differences_table(analyses.intervals),
        "interference": interference_table(analyses.pairs),
        "paper": paper_table(paper),
    }


def _sections(tables: Mapping[str, Table], figures: Sequence[str]) -> list[str]:
    """A heading for each table with rows, what there is to say of it, its figures with their captions, and itself."""
    parts = []
    for name, table in tables.items():
        if table.rows:
            captions = FIGURES.get(name, {name: f"{table.title}, with 95 % intervals"})
            pictures = [f"![{text}]({file}.png)\\\n*{text}.*" for file, text in captions.items() if file in figures]
            parts += [f"## {table.title}", *pictures, *filter(None, [TOLD.get(name)]), to_markdown(table)]
    return parts


def _draw(tables: Mapping[str, Table], pairs: Pairs, earlier: Path | None, directory: Path) -> list[str]:
    """Pictures of the tables and of what is in `pairs`, and all of them on an interactive page; returns their names.

    Those of an `earlier` report are copied where it shows the same: drawing takes seconds.
    """
    charts = charts_of(tables)
    maps = {
        "interference": interference_heats(pairs),
        "overlap": overlap_heats(pairs),
        "sparsity": sparsity_heats(pairs, MASKED),
    }
    heats = {name: panels for name, panels in maps.items() if panels}
    names = [*charts, *heats]
    if not names:
        return []
    shown = _digest(charts, heats)
    (directory / DRAWN).write_text(shown)
    if earlier and (earlier / DRAWN).exists() and (earlier / DRAWN).read_text() == shown:
        for name in (*(f"{name}.png" for name in names), FIGURES_PAGE):
            shutil.copy(earlier / name, directory)
        return names
    from tasks.report.charts_html import to_page
    from tasks.report.charts_png import draw_figures, draw_heats  # these two take seconds to import

    draw_figures(charts, directory)
    draw_heats(heats, directory)
    titles = {name: table.title for name, table in tables.items()} | FIGURES["interference"]
    (directory / FIGURES_PAGE).write_text(to_page(titles, charts, heats))
    return names


def _digest(charts: Mapping[str, Sequence[Chart]], heats: Mapping[str, Sequence[Heat]]) -> str:
    """Of what figures show, and of the code that draws them; of changed code that no commit has, never the same."""
    values = [heat.values.tolist() for panels in heats.values() for heat in panels]  # a repr leaves digits out
    drawn_by = tracking.provenance()
    now = time.time() if drawn_by["lori.dirty"] == "true" else 0.0
    return hashlib.sha256(repr((charts, heats, values, drawn_by, now)).encode()).hexdigest()


def _write_files(directory: Path, markdown: str, tables: Mapping[str, Table]) -> None:
    (directory / "README.md").write_text(markdown)
    (directory / "index.html").write_text(to_html(markdown, directory))
    for name, table in tables.items():
        if table.rows:
            (directory / f"{name}.csv").write_text(to_csv(table))
