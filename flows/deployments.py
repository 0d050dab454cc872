"""The Prefect flows that prefect.yaml deploys.

A flow's name is part of its deployments' addresses. So one function is a flow under several names, such as `merge`,
and prefect.yaml gives each the parameters that make it so.
"""

import inspect
from collections.abc import Callable
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


def _run_name() -> str:
    """What a flow run is about, as in `lori paper mistral-7b`."""
    about = flow_run.parameters
    words = [flow_run.flow_name, about["profile"], about.get("base_model")]
    words += [about.get(name) for name in ("collection", "author", "search")]
    return " ".join(filter(None, [*words, *(about.get("base_models") or [])]))


def _flow(function: Callable[..., State], name: str) -> StudyFlow:
    return flow(name=name, flow_run_name=_run_name, task_runner=THREADS)(function)


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
