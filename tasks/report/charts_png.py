"""The report's charts and heat maps as pictures (PNG)."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lori.evaluation.row_names import THEN
from tasks import tracking
from tasks.report.charts import Chart, Heat
from tasks.report.table import Estimate

DPI, COLUMNS = 100, 4  # dots an inch; panels in a row, where there are several
MAX_TICKS, MAX_TICK = 6, 100  # of more or larger places of lines, ticks are at round numbers
LABEL = 30  # characters in a line beside a colour bar: a longer one would be cut
STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def draw_figures(charts: Mapping[str, Sequence[Chart]], directory: Path) -> None:
    """Write `<name>.png` for each list of charts, a panel a chart."""
    for name, panels in charts.items():
        columns = min(COLUMNS, len(panels))
        width, height = (10.0, 3.6) if len(panels) == 1 else (3.8 * columns, 2.9)
        with mpl.rc_context(STYLE), _figure(directory / f"{name}.png", len(panels), columns, width, height) as drawn:
            figure, every = drawn
            for axes, chart in zip(every, panels, strict=True):
                draw(axes, chart)
            handles = {label: h for axes in every for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
            figure.legend([*handles.values()], [*handles], frameon=False, loc="outside right upper")


@contextmanager
def _figure(
    path: Path, num_panels: int, columns: int, width: float, height: float
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of `width` inches and its panels in rows of `height`; saved when they are drawn."""
    rows = math.ceil(num_panels / columns)
    figure = Figure(
        (width, height * rows), layout="constrained"
    )  # of no window and no global state: a server draws it
    every = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in every[num_panels:]:
        axes.set_axis_off()
    yield figure, every[:num_panels]
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def draw(axes: Axes, chart: Chart) -> None:
    """One chart, each number with its 95 % interval."""
    is_line = chart.kind == "lines"
    for index, series in enumerate(chart.series):
        aside = (index - (len(chart.series) - 1) / 2) * 0.7 / len(chart.series)  # of the middle of its group
        axes.errorbar(
            [place if is_line else chart.places.index(place) + aside for place, _ in series.points],
            [value.mean for _, value in series.points],
            yerr=_errors([value for _, value in series.points]),
            label=series.name,
            color=tracking.colour_of(series.name).get("mlflow.runColor"),
            marker="o",
            markersize=4,
            linewidth=1.2,
            linestyle="solid" if is_line else "none",
            elinewidth=0.8,
        )
    if not is_line:
        labels = [str(place).replace(THEN, f"\n{THEN.lstrip()}") for place in chart.places]
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
    elif chart.log:
        axes.set_xscale("log")
    if is_line and len(chart.places) <= MAX_TICKS and max(chart.places) <= MAX_TICK:
        axes.set_xticks(chart.places, [f"{place:g}" for place in chart.places])
        axes.minorticks_off()
    axes.set_title(chart.title, loc="left")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_ylim(chart.ends)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the intervals below and above each mean."""
    ends = [(estimate.mean, *estimate.interval) for estimate in estimates]
    return [[max(0.0, mean - low) for mean, low, _ in ends], [max(0.0, high - mean) for mean, _, high in ends]]


def draw_heats(heats: Mapping[str, Sequence[Heat]], directory: Path) -> None:
    """Write `<name>.png` for each list of heat maps, side by side on one scale of colours."""
    for name, panels in heats.items():
        columns = min(COLUMNS + 1, len(panels))
        path, width = directory / f"{name}.png", 2.2 + 2.3 * columns
        with mpl.rc_context({"font.size": 9}), _figure(path, len(panels), columns, width, 3.0) as (figure, every):
            for axes, heat in zip(every, panels, strict=True):
                axes.imshow(heat.values, cmap="viridis", vmin=heat.ends[0], vmax=heat.ends[1], aspect="auto")
                axes.set_title(heat.title, loc="left")
                axes.set_xticks(range(len(heat.projections)), heat.projections, rotation=60, ha="right", fontsize=7)
                axes.set_yticks(range(len(heat.layers)), heat.layers)
                axes.set_ylabel("layer")
            label = textwrap.fill(panels[0].label, LABEL)
            figure.colorbar(every[0].images[0], ax=every, label=label)
