"""The report's charts and heat maps as pictures (PNG)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lori.evaluation.row_names import THEN
from tasks import tracking
from tasks.report.charts import Chart, Heat, Series
from tasks.report.table import Estimate

DPI, COLUMNS = 100, 4  # dots an inch; panels in a row, where there are several
MAX_TICKS, MAX_TICK = 6, 100  # of more or larger places of lines, ticks are at round numbers
STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def draw_figures(charts: Mapping[str, Sequence[Chart]], directory: Path) -> None:
    """Write `<name>.png` for each list of charts, a panel a chart."""
    for name, panels in charts.items():
        columns = min(COLUMNS, len(panels))
        rows = math.ceil(len(panels) / columns)
        size = (10.0, 3.6) if len(panels) == 1 else (3.8 * columns, 2.9 * rows)
        with mpl.rc_context(STYLE):
            figure = Figure(size, layout="constrained")  # of no window and no global state: a server draws it
            every = figure.subplots(rows, columns, squeeze=False).flatten()
            for axes, chart in zip(every, panels, strict=False):
                draw(axes, chart)
            for axes in every[len(panels) :]:
                axes.set_axis_off()
            handles = {label: h for axes in every for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
            figure.legend([*handles.values()], [*handles], frameon=False, loc="outside right upper")
        figure.savefig(directory / f"{name}.png", dpi=DPI, metadata={"Software": None})


def draw(axes: Axes, chart: Chart) -> None:
    """One chart, each number with its 95 % interval."""
    for index, series in enumerate(chart.series):
        if chart.kind == "bars":
            _bars(axes, chart, series, index)
        else:
            _line(axes, series)
    if chart.kind == "bars":
        labels = [str(place).replace(THEN, f"\n{THEN.lstrip()}") for place in chart.places]
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
    elif chart.log:
        axes.set_xscale("log")
    if chart.kind == "lines" and len(chart.places) <= MAX_TICKS and max(chart.places) <= MAX_TICK:
        axes.set_xticks(chart.places, [f"{place:g}" for place in chart.places])
        axes.minorticks_off()
    axes.set_title(chart.title, loc="left")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_ylim(0, 100)


def _bars(axes: Axes, chart: Chart, series: Series, index: int) -> None:
    width = 0.8 / len(chart.series)
    offset = (index - (len(chart.series) - 1) / 2) * width
    axes.bar(
        [chart.places.index(place) + offset for place, _ in series.points],
        [value.mean for _, value in series.points],
        width,
        yerr=_errors([value for _, value in series.points]),
        label=series.name,
        color=tracking.colour_of(series.name).get("mlflow.runColor"),
        error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
    )


def _line(axes: Axes, series: Series) -> None:
    axes.errorbar(
        [place for place, _ in series.points],
        [value.mean for _, value in series.points],
        yerr=_errors([value for _, value in series.points]),
        label=series.name,
        color=tracking.colour_of(series.name).get("mlflow.runColor"),
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
    )


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the intervals below and above each mean."""
    ends = [(estimate.mean, *estimate.interval) for estimate in estimates]
    return [[max(0.0, mean - low) for mean, low, _ in ends], [max(0.0, high - mean) for mean, _, high in ends]]


def draw_heats(heats: Mapping[str, Sequence[Heat]], directory: Path) -> None:
    """Write `<name>.png` for each list of heat maps, side by side on one scale of colours."""
    for name, panels in heats.items():
        columns = min(COLUMNS + 1, len(panels))
        rows = math.ceil(len(panels) / columns)
        with mpl.rc_context({"font.size": 9}):
            figure = Figure((2.2 + 2.3 * columns, 3.0 * rows), layout="constrained")
            every = figure.subplots(rows, columns, squeeze=False).flatten()
            for axes, heat in zip(every, panels, strict=False):
                axes.imshow(heat.values, cmap="viridis", vmin=heat.ends[0], vmax=heat.ends[1], aspect="auto")
                axes.set_title(heat.title, loc="left")
                axes.set_xticks(range(len(heat.projections)), heat.projections, rotation=60, ha="right", fontsize=7)
                axes.set_yticks(range(len(heat.layers)), heat.layers)
                axes.set_ylabel("layer")
            for axes in every[len(panels) :]:
                axes.set_axis_off()
            figure.colorbar(every[0].images[0], ax=every.tolist(), label=panels[0].label)
        figure.savefig(directory / f"{name}.png", dpi=DPI, metadata={"Software": None})
