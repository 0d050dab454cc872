"""The report's charts and heat maps as one page that needs nothing beside it, with values under the pointer."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, FactorRange, Range1d, Whisker
from bokeh.palettes import Category10, Viridis256
from bokeh.plotting import figure
from bokeh.resources import INLINE
from bokeh.transform import linear_cmap

from tasks import tracking
from tasks.report.charts import Chart, Heat, Series

WIDTH, HEIGHT = 480, 340  # pixels
WIDE = 780  # of a chart that is alone under its heading
WRAP = ":host { flex-wrap: wrap; }"
TOOLS = "pan,wheel_zoom,box_zoom,reset,save,hover"


def to_page(
    titles: Mapping[str, str], charts: Mapping[str, Sequence[Chart]], heats: Mapping[str, Sequence[Heat]]
) -> str:
    """One HTML page with all of them under the headings `titles`."""
    parts: list[Any] = []
    for name, panels in charts.items():
        width = WIDE if len(panels) == 1 else WIDTH
        parts += [_heading(titles[name]), _grid([_chart(panel, width) for panel in panels])]
    for name, maps in heats.items():
        parts += [_heading(titles[name]), _grid([_heat(heat) for heat in maps])]
    return file_html(column(*parts, sizing_mode="stretch_width"), INLINE, "LoRI: figures")


def _heading(title: str) -> Div:
    return Div(text=f"<h2>{title}</h2>")


def _grid(panels: Sequence[Any]) -> Any:
    """As many side by side as the window has room for."""
    for panel in panels:
        panel.toolbar.logo = None
    return row(*panels, sizing_mode="stretch_width", stylesheets=[WRAP])


def _chart(chart: Chart, width: int) -> Any:
    is_line = chart.kind == "lines"
    names = [series.name for series in chart.series]
    factors = [(group, name) for group in chart.places for name in names]
    place: dict[str, Any] = {"x_axis_type": "log" if chart.log else "linear"}
    place = place if is_line else {"x_range": FactorRange(factors=factors)}
    plot = figure(
        title=chart.title,
        x_axis_label=chart.x_label,
        y_axis_label=chart.y_label,
        width=width,
        height=HEIGHT,
        y_range=Range1d(start=chart.ends[0], end=chart.ends[1]),
        tools=TOOLS,
        tooltips=[("", "@name"), ("x", "@place"), ("y", "@mean{0.0} [@low{0.0}, @high{0.0}]"), ("seeds", "@seeds")],
        **place,
    )
    for index, series in enumerate(chart.series):
        source = _source(series, is_line=is_line)
        colour = tracking.colour_of(series.name).get("mlflow.runColor") or Category10[10][index % 10]
        if is_line:
            plot.line(x="x", y="mean", source=source, color=colour, legend_label=series.name)
        plot.scatter(x="x", y="mean", source=source, color=colour, size=7, legend_label=series.name)
        plot.add_layout(Whisker(base="x", lower="low", upper="high", source=source, line_color="#333333"))
    if not is_line:
        plot.xaxis.major_label_text_font_size = "0px"  # the legend says it
    plot.legend.click_policy = "hide"
    plot.legend.label_text_font_size = "8pt"
    plot.add_layout(plot.legend[0], "right")
    return plot


def _source(series: Series, *, is_line: bool) -> ColumnDataSource:
    ends = [value.interval for _, value in series.points]
    return ColumnDataSource(
        {
            "x": [place if is_line else (place, series.name) for place, _ in series.points],
            "place": [place for place, _ in series.points],
            "name": [series.name] * len(series.points),
            "mean": [value.mean for _, value in series.points],
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
            "seeds": [value.num_seeds for _, value in series.points],
        }
    )


def _heat(heat: Heat) -> Any:
    cells = [
        (projection, layer, float(heat.values[line, place]))
        for line, layer in enumerate(heat.layers)
        for place, projection in enumerate(heat.projections)
    ]
    projections, layers, values = (list(each) for each in zip(*cells, strict=True))
    plot = figure(
        title=f"{heat.title}: {heat.label}",
        x_range=FactorRange(factors=list(heat.projections)),
        y_range=FactorRange(factors=[*reversed(heat.layers)]),
        y_axis_label="layer",
        width=WIDTH,
        height=HEIGHT,
        tools=TOOLS,
        tooltips=[("layer", "@layer"), ("", "@projection"), ("value", "@value")],
    )
    source = ColumnDataSource({"projection": projections, "layer": layers, "value": values})
    colours = linear_cmap("value", Viridis256, *heat.ends)
    drawn = plot.rect(x="projection", y="layer", width=1, height=1, source=source, color=colours)
    plot.add_layout(drawn.construct_color_bar(width=8), "right")
    plot.xaxis.major_label_orientation = 1.0
    return plot
