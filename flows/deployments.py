"""The Prefect flows that prefect.yaml deploys.

A flow's name is part of its deployments' addresses. So one function is a flow under several names, such as `merge`,
and prefect.yaml gives each the parameters that make it so.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import ablate as _ablate
from flows import paper as _paper
from flows import published as _published
from flows import scout as _scout
from flows import sweep as _sweep
from flows.job import job as job  # its own module: a worker's flow, which imports nothing of a study
from flows.parameters import meaning

StudyFlow = Flow[..., State]
# Threads that only wait: how much is computed at once is the executor's business
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)
ABOUT = ("profile", "base_model", "collection", "author", "search")  # parameters that a run's name begins with
# And that it leaves out: places, and what the name of the deployment says
UNNAMED = ("base_models", "source", "data_dir", "adapters_dir", "hardware", "tables", "controls", "adapters")


def run_name(flow_name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What a flow run is about, and what was asked for, as in `lori paper mistral-7b · sparsity 0.8 · seeds 0, 1`."""
    about = [flow_name, *(given.get(name) for name in ABOUT), *(given.get("base_models") or [])]
    changed = [
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
        if value != defaults[name] and name not in (*ABOUT, *UNNAMED)
    ]
    return " · ".join([" ".join(filter(None, about)), *changed])


def _flow(function: Callable[..., State], name: str) -> StudyFlow:
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}

    def named() -> str:
        return run_name(name, flow_run.parameters, defaults)

    return flow(name=name, flow_run_name=named, task_runner=THREADS)(function)


def _documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """With what its parameters mean in its docstring: Prefect's forms show it from there."""
    taken = inspect.signature(function).parameters
    lines = [f"    {name}: {meaning(each.annotation)}" for name, each in taken.items()]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *lines])
    return function


paper = _documented(_paper.paper)
full_paper = _flow(paper, "lori")
adapt, merge = _flow(paper, "adapt"), _flow(paper, "merge")
continual, claims = _flow(paper, "continual"), _flow(paper, "claims")
ablate, sweep = _flow(_documented(_ablate.ablate), "ablate"), _flow(_documented(_sweep.sweep), "sweep")
published, scout = _flow(_documented(_published.published), "published"), _flow(_documented(_scout.scout), "scout")
