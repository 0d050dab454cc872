"""Saved views of MLflow's page of runs, from mlflow/views.yaml: filter, columns, order, charts; and links to them.

MLflow keeps a view as a tag of its experiment: JSON, the page's state in it deflated. The format is MLflow's own and
documented nowhere (`savedViewEnvelope.ts`, `ExperimentPageUIState.tsx` of 3.17): the browser tests hold it.
"""

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from tasks.machine import ROOT
from tasks.results import Runtime
from tasks.tracking.client import connect, experiment_id_of, is_server

VIEWS_FILE = ROOT / "mlflow" / "views.yaml"
STATE_TAG = "mlflow.sharedViewState."  # MLflow's, with the view's id
OWN_TAG = "lori.view."  # with the id: the digest of what we wrote last
KINDS = {"p": "params", "m": "metrics", "t": "tags"}
MAX_TAG = 20_000  # characters, MLflow's limit
CHARTS, TABLE = "CHART", "TABLE"


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(VIEWS_FILE.read_text())


def colour_of(method: str) -> dict[str, str]:
    """The tag that gives a method's runs its colour in charts; none for one that views.yaml does not name."""
    return {"mlflow.runColor": colour} if (colour := _file()["colours"].get(method)) else {}


def provision_views(runtime: Runtime, metrics: Iterable[str] = ()) -> None:
    """Write the views, and a description with links to them; what a person changed or deleted stays so.

    `metrics` are all that the experiment has: one without a chart of its own would get one that nobody asked for.
    """
    client = connect(runtime.tracking_uri)
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    tags = client.get_experiment(experiment_id).tags
    views = _file()["views"]
    now = int(time.time() * 1000)
    wanted = {}
    for place, (view_id, view) in enumerate(views.items()):
        state = _packed(_state(view, metrics))
        # The menu has the newest first
        envelope = json.dumps({"name": view["name"], "createdAt": now - place * 1000, "state": state})
        assert len(envelope) < MAX_TAG, view_id
        if _is_ours(tags, view_id) and _state_in(tags, view_id) != state:
            wanted |= {STATE_TAG + view_id: envelope, OWN_TAG + view_id: _digest(state)}
    if (note := _description(runtime)) != tags.get("mlflow.note.content"):
        wanted["mlflow.note.content"] = note
    for name, value in wanted.items():
        client.set_experiment_tag(experiment_id, name, value)


def view_links(runtime: Runtime) -> dict[str, str]:
    """The address of each view's page by its name; of charts where a view has some. None without a server."""
    if not is_server(runtime.tracking_uri):
        return {}
    return {view["name"]: f"{runtime.tracking_uri.rstrip('/')}/{page}" for view, page in _pages(runtime)}


def _pages(runtime: Runtime) -> list[tuple[dict[str, Any], str]]:
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    return [
        (
            view,
            f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view_id}"
            f"&compareRunsMode={CHARTS if 'lines' in view else TABLE}",
        )
        for view_id, view in _file()["views"].items()
    ]


def _description(runtime: Runtime) -> str:
    lines = [f"- [{view['name']}]({page}): {view['about']}" for view, page in _pages(runtime)]
    return "\n".join(["LoRI, arXiv 2504.07448. Views, in the order of the paper:", "", *lines])


def _is_ours(tags: Mapping[str, str], view_id: str) -> bool:
    """Whether the view is as we wrote it, or was never written."""
    written = tags.get(OWN_TAG + view_id)
    return written is None or (STATE_TAG + view_id in tags and _digest(_state_in(tags, view_id) or "") == written)


def _state_in(tags: Mapping[str, str], view_id: str) -> str | None:
    envelope = tags.get(STATE_TAG + view_id)
    return json.loads(envelope)["state"] if envelope else None


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def _packed(state: Mapping[str, Any]) -> str:
    text = json.dumps(state, separators=(",", ":"), sort_keys=True)
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _state(view: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, Any]:
    """What the page keeps of itself."""
    columns = [_column(name) for name in view["columns"]]
    order, direction = view["order_by"]
    charts, sections = _charts(view)
    shown = {chart.get("metricKey") for chart in charts}
    charts += [
        {**_chart("BAR", "hidden", metric), "metricKey": metric, "deleted": True, "isGenerated": True}
        for metric in sorted(set(metrics) - shown)
    ]
    group_by = [{"mode": "tag", "groupByData": tag} for tag in view.get("group_by", ())]
    return {
        "searchFilter": " and ".join(_condition(tag, value) for tag, value in view["where"].items()),
        "orderByKey": _column(order),
        "orderByAsc": direction == "ascending",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": group_by} if group_by else None,
        "useGroupedValuesInCharts": bool(group_by),
        "groupsExpanded": {},
        "chartsSearchFilter": "",
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _column(name: str) -> str:
    kind, _, key = name.partition(":")
    return f"{KINDS[kind]}.`{key}`"


def _condition(tag: str, value: str) -> str:
    return f"tags.`{tag}` != '{value[1:]}'" if value.startswith("!") else f"tags.`{tag}` = '{value}'"


def _charts(view: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The charts, and the headings that they are under."""
    charts, headings = [], []
    for kind in ("bars", "lines", "scatter"):
        for heading, subjects in view.get(kind, {}).items():
            headings.append(heading)
            charts += [_CHARTS[kind](heading, subject) for subject in subjects]
    sections = [
        {
            "uuid": _uuid(name),
            "name": name,
            "display": True,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        for name in dict.fromkeys(headings)
    ]
    return charts, sections


def _uuid(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _chart(kind: str, heading: str, *subject: str) -> dict[str, Any]:
    return {
        "uuid": _uuid(kind, heading, *subject),
        "type": kind,
        "metricSectionId": _uuid(heading),
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
    }


def _bar(heading: str, metric: str) -> dict[str, Any]:
    return {**_chart("BAR", heading, metric), "metricKey": metric}


def _line(heading: str, metric: str) -> dict[str, Any]:
    return {
        **_chart("LINE", heading, metric),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "selectedXAxisMetricKey": "",
        "yAxisExpressions": [],
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "ignoreOutliers": False,
    }


def _scatter(heading: str, axes: Sequence[str]) -> dict[str, Any]:
    parameter, metric = axes
    return {
        **_chart("SCATTER", heading, *axes),
        "xaxis": {"key": parameter, "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }


_CHARTS = {"bars": _bar, "lines": _line, "scatter": _scatter}
