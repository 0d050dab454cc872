"""Papers on new base models: which of the candidates have theirs, and the flow runs of the next ones.

Each is asked for once, attempt by attempt, as flow runs of `lori/full-paper`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed
from prefect.utilities.urls import url_for

from flows.study.checks import check_usable
from lori.base_models.candidates import BILLION, Candidate, Filters, check_candidate
from lori.base_models.resolve import split_base
from lori.choices.profiles import PROFILES
from lori.recipes import checked_profile
from tasks import tracking
from tasks.machine import local_runtime
from tasks.report.paper_tables import PAPER_TABLES
from tasks.report.write import study_settings
from tasks.results import Runtime, step_key
from tasks.tracking.reports import Report, as_texts, find_reports

DEPLOYMENT = "lori/full-paper"
TAG = "scouted"  # of the papers that were asked for here, and of nothing else: no deployment has it
STARTED, WOULD_START, RUNNING = "started", "would start", "running"


@dataclass(frozen=True)
class Order:
    """What is asked for: the paper of `profile` with `parameters`, for bases that `filters` let through."""

    profile: str
    parameters: Mapping[str, Any]
    filters: Filters
    limit: int
    max_attempts: int
    dry_run: bool


@dataclass(frozen=True)
class Decision:
    """What becomes of a candidate, and why; `url` is of its flow run."""

    candidate: Candidate
    action: str
    why: str
    url: str | None = None


def start_papers(candidates: Sequence[Candidate], order: Order) -> State:
    """Decide about each candidate, start what is due, and leave the table of all decisions."""
    runtime = local_runtime()
    tracking.ensure_store(runtime.tracking_uri)
    with get_client(sync_client=True) as client:
        return _publish(list(_decide(client, candidates, find_reports(runtime, order.profile), order)))


def _decide(
    client: SyncPrefectClient, candidates: Sequence[Candidate], reports: Sequence[Report], order: Order
) -> Iterator[Decision]:
    """A decision each, in the order of the candidates, of which the first may start."""
    num_active = count_active(client)
    for candidate in candidates:
        if candidate.identity is None:
            yield Decision(candidate, "left out", candidate.problem or "")
            continue
        settings = study_settings(PROFILES[order.profile], candidate.identity)
        if done := _report_of(settings, reports):
            yield Decision(candidate, "done", f"its report is MLflow's run {done.run_id}")
            continue
        decision = _begin(client, candidate, paper_key(settings), order, is_free=num_active < order.limit)
        num_active += decision.action in (STARTED, WOULD_START)
        yield decision


def _report_of(settings: Mapping[str, Any], reports: Sequence[Report]) -> Report | None:
    """The report of the whole paper with these settings."""
    texts = as_texts(settings)
    whole = (report for report in reports if report.settings == texts and report.tables == PAPER_TABLES)
    return next(whole, None)


def _begin(client: SyncPrefectClient, candidate: Candidate, key: str, order: Order, *, is_free: bool) -> Decision:
    """Start the next attempt, unless there is none left, one is on its way, or the base can't be used."""
    attempts = attempts_at(client, key, order.max_attempts)
    number = max(attempts, default=0)
    if attempts and (standing := _standing(candidate, number, attempts[number], order.max_attempts)):
        return standing
    if not is_free:
        return Decision(candidate, "waits", f"{order.limit} at once is the limit, and others are before it")
    try:
        candidate = check_candidate(candidate, order.filters, local_runtime().models_dir)
        _check_usable(candidate, order)
    except (ValueError, RuntimeError) as error:
        return Decision(candidate, "left out", str(error))
    why = f"attempt {number + 1} of {order.max_attempts}"
    if order.dry_run:
        return Decision(candidate, WOULD_START, f"{why}, but for dry_run")
    parameters = {**order.parameters, "profile": order.profile, "base_model": candidate.base_model}
    run = start_paper(key, number + 1, candidate.identity or "", parameters)
    return Decision(candidate, STARTED, why, url_for("flow-run", run.id))


def _standing(candidate: Candidate, number: int, run: FlowRun, max_attempts: int) -> Decision | None:
    """What the newest attempt decides; None if the next one is due."""
    state, url = run.state, url_for("flow-run", run.id)
    attempt = f"attempt {number} of {max_attempts}"
    if state is None or not state.is_final():
        return Decision(candidate, RUNNING, f"{attempt} waits or runs", url)
    if state.is_cancelled():
        return Decision(candidate, "cancelled", f"{attempt} was cancelled: delete its flow run to have it again", url)
    if number == max_attempts:
        how = "completed, but its report is not in MLflow" if state.is_completed() else f"failed: {state.message}"
        return Decision(candidate, "gave up", f"{attempt} {how}", url)
    return None


def _check_usable(candidate: Candidate, order: Order) -> None:
    """Whether the paper could begin: as it will ask itself, but before it is asked for."""
    runtime = local_runtime(Runtime(data_dir=order.parameters["data_dir"]))
    base, models_dir = split_base(candidate.base_model)
    places = {"data_dir": runtime.data_dir, "models_dir": models_dir or runtime.models_dir}
    check_usable(checked_profile.profile(order.profile, base_model=base, **places), plan_only=False)


def _publish(decisions: Sequence[Decision]) -> State:
    """The table of all candidates, as an artifact and in the log."""
    rows = [_row(decision) for decision in decisions]
    for row in rows:
        print(f"{row['base model']}  {row['action']}: {row['why']}", flush=True)
    create_table_artifact(rows, key="lori-scout", description="Candidates for the paper, and what became of each")
    counts = Counter(decision.action for decision in decisions)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items())
    return Completed(message=summary or "No candidates.", data=rows)


def _row(decision: Decision) -> dict[str, Any]:
    candidate = decision.candidate
    size = candidate.num_parameters and f"{candidate.num_parameters / BILLION:.2f} B"
    return {
        "base model": candidate.identity or candidate.base_model,
        "action": decision.action,
        "why": decision.why,
        "parameters": size,
        "licence": candidate.licence,
        "flow run": decision.url,
    }


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
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)))
    return client.count_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[TAG]), state=unfinished))


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
