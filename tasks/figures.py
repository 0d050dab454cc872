"""Figures of the report's tables: a PNG a table, each estimate with its 95 % interval."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lori.cards import QUANTILE
from tasks import tracking
from tasks.interference_table import Pairs
from tasks.tables import Estimate, Table, Value

SIZE, DPI = (10.0, 3.6), 110  # inches, and dots an inch
PERCENT, MEAN = "percent", "mean over domains, percent"
Rows = Sequence[Mapping[str, Value]]


def draw_figures(tables: Mapping[str, Table], directory: Path) -> dict[str, str]:
    """Write `<table>.png` for each table that has rows and a figure; the file names by table."""
    names = {}
    for name, draw in FIGURES.items():
        if tables[name].rows:
            figure = Figure(SIZE, layout="constrained")  # of no window and no global state: a server draws it
            with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
                axes = figure.subplots()
                draw(axes, tables[name])
                axes.set_title(tables[name].title, loc="left")
                axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            names[name] = f"{name}.png"
            figure.savefig(directory / names[name], dpi=DPI, metadata={"Software": None})
    return names


def draw_interference(pairs: Pairs, directory: Path) -> dict[str, str]:
    """Write `interference.png`: |cosine| by layer and projection, a panel a method, means over domains and seeds."""
    if not pairs:
        return {}
    panels = {method: _by_module(found) for method, found in pairs.items()}
    largest = max(np.nanmax(values) for values, *_ in panels.values()) or 1.0
    figure = Figure((2.2 + 2.6 * len(panels), 3.2), layout="constrained")
    for axes, (method, (values, layers, projections)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.imshow(values, cmap="viridis", vmin=0.0, vmax=largest, aspect="auto")
        axes.set_title(method, loc="left")
        axes.set_xticks(range(len(projections)), projections, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(layers)), layers)
        axes.set_ylabel("layer")
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label="|cosine of ΔW|, mean over pairs of domains")
    figure.savefig(directory / "interference.png", dpi=DPI, metadata={"Software": None})
    return {"interference": "interference.png"}


def _by_module(found: Sequence[Mapping[str, Any]]) -> tuple[Any, list[str], list[str]]:
    """The mean of |cosine| as (layers, projections), with their names."""
    places = {module: (_layer(module), module.rpartition(".")[2]) for module in found[0]["modules"]}
    layers = list(dict.fromkeys(layer for layer, _ in sorted(places.values(), key=lambda place: int(place[0]))))
    projections = list(dict.fromkeys(projection for _, projection in places.values()))
    values = np.full((len(layers), len(projections)), np.nan)
    for module, (layer, projection) in places.items():
        cosines = [abs(pair["modules"][module]["cosine"]) for pair in found]
        values[layers.index(layer), projections.index(projection)] = np.mean(cosines)
    return values, layers, projections


def _layer(module: str) -> str:
    numbers = [part for part in module.split(".") if part.isdigit()]
    return numbers[0] if numbers else "0"


def _draw_single(axes: Axes, table: Table) -> None:
    """Groups are metrics, bars methods."""
    metrics = {name: title for name, title in table.columns.items() if "/" in name}
    bars = {str(row["method"]): [row.get(name) for name in metrics] for row in table.rows}
    _grouped(axes, list(metrics.values()), bars, PERCENT)


def _draw_merging(axes: Axes, table: Table) -> None:
    """Groups are merges, bars methods."""
    merges = list(dict.fromkeys(str(row["merge"]) for row in table.rows))
    bars: dict[str, list[Value]] = {}
    for row in table.rows:
        bars.setdefault(str(row["method"]), [None] * len(merges))[merges.index(str(row["merge"]))] = row["mean"]
    _grouped(axes, [merge.partition(" ")[0] for merge in merges], bars, MEAN)


def _draw_continual(axes: Axes, table: Table) -> None:
    """Groups are pairs of domains, bars what is left of the first one, by method; beside them what it was before."""
    pairs = list(dict.fromkeys(str(row["domains"]) for row in table.rows))
    bars: dict[str, list[Value]] = {}
    for row in table.rows:
        place = pairs.index(str(row["domains"]))
        bars.setdefault(str(row["method"]), [None] * len(pairs))[place] = row["first_after"]
    _grouped(axes, pairs, bars, "first domain after the second, percent")


def _draw_ablations(axes: Axes, table: Table) -> None:
    """Groups are values of settings, bars methods."""
    values = list(dict.fromkeys(f"{row['setting']}\n{row['value']}" for row in table.rows))
    bars: dict[str, list[Value]] = {}
    for row in table.rows:
        place = values.index(f"{row['setting']}\n{row['value']}")
        bars.setdefault(str(row["method"]), [None] * len(values))[place] = row["mean"]
    _grouped(axes, values, bars, MEAN)


FIGURES: dict[str, Callable[[Axes, Table], None]] = {
    "single": _draw_single,
    "merging": _draw_merging,
    "continual": _draw_continual,
    "ablations": _draw_ablations,
}


def _grouped(axes: Axes, groups: Sequence[str], bars: Mapping[str, Sequence[Value]], label: str) -> None:
    """`bars` of the same colour, one in each group; what was not computed leaves a gap."""
    width = 0.8 / len(bars)
    for index, (method, values) in enumerate(bars.items()):
        found = [(place, value) for place, value in enumerate(values) if isinstance(value, Estimate)]
        axes.bar(
            [place + (index - (len(bars) - 1) / 2) * width for place, _ in found],
            [value.mean for _, value in found],
            width,
            yerr=_errors([value for _, value in found]),
            label=method,
            color=tracking.colour_of(method).get("mlflow.runColor"),
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    axes.set_ylim(0, 100)


def _errors(estimates: Sequence[Estimate]) -> Any:
    """Lengths of the 95 % interval below and above each mean, (2, bars), within 0 to 100."""
    means = np.array([estimate.mean for estimate in estimates])
    reach = QUANTILE * np.array([estimate.error for estimate in estimates])
    return np.array([np.minimum(reach, means), np.minimum(reach, 100 - means)]) if len(means) else None
