"""Runs of the paper on new base models: each asked for once, attempt by attempt, as flow runs of `lori/full-paper`."""

from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from tasks.results import step_key

DEPLOYMENT = "lori/full-paper"
TAG = "scout"  # of the flow runs that were started here


def paper_key(settings: Mapping[str, Any]) -> str:
    """The identity of a whole paper: of what it is about, with the base model's revision."""
    return step_key("full-paper", 1, settings, {})


def attempts_at(client: SyncPrefectClient, key: str, max_attempts: int) -> dict[int, FlowRun]:
    """The flow runs of a paper by the number of the attempt, from 1 on."""
    numbers = {f"{key}:{number}": number for number in range(1, max_attempts + 1)}
    same_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(numbers)))
    runs = client.read_flow_runs(flow_run_filter=same_key, limit=max_attempts)
    return dict(sorted((numbers[run.idempotency_key or ""], run) for run in runs))


def count_active(client: SyncPrefectClient) -> int:
    """How many papers that were started here wait or run."""
    unfinished = [kind for kind in StateType if kind not in TERMINAL_STATES]
    active = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[TAG]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=unfinished)),
    )
    return len(client.read_flow_runs(flow_run_filter=active))


def start_paper(key: str, attempt: int, base: str, parameters: Mapping[str, Any]) -> FlowRun:
    """Ask for an attempt. It belongs to itself: a scout that ends or is cancelled takes no paper with it.

    Raises:
        RuntimeError: if the deployment does not exist.
    """
    try:
        created = run_deployment(
            DEPLOYMENT,
            parameters=dict(parameters),
            timeout=0,
            as_subflow=False,
            idempotency_key=f"{key}:{attempt}",
            flow_run_name=f"lori {parameters['profile']} {base}",
            tags=["lori", TAG, f"base:{base}"],
        )
    except ObjectNotFound as error:
        raise RuntimeError(
            f"There is no deployment {DEPLOYMENT} on this Prefect server: make it with"
            " `python -m flows.servers.bootstrap`."
        ) from error
    assert isinstance(created, FlowRun)  # and no coroutine: nothing here is asynchronous
    return created
