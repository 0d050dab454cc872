"""Papers on new base models: which of the candidates have theirs, and the flow runs of the next ones.

Each is asked for once, attempt by attempt, as flow runs of `lori/full-paper`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed
from prefect.utilities.urls import url_for

from flows.study.checks import check_usable
from lori.base_models.candidates import BILLION, Candidate, Filters, check_candidate
from lori.choices.profiles import PROFILES
from lori.recipes import checked_profile
from tasks import tracking
from tasks.machine import experiment_of, local_runtime
from tasks.report.paper_tables import PAPER_TABLES
from tasks.report.write import study_settings
from tasks.results import Runtime, step_key
from tasks.tracking.reports import as_texts, find_reports

DEPLOYMENT = "lori/full-paper"
TAG = "scouted"  # of the papers that were asked for here, and of nothing else: no deployment has it
STARTED, WOULD_START = "started", "would start"


@dataclass(frozen=True)
class Order:
    """What is asked for: the paper of `profile` with `parameters`, for bases that `filters` let through."""

    profile: str
    parameters: Mapping[str, Any]
    filters: Filters
    limit: int
    max_attempts: int
    dry_run: bool


def start_papers(candidates: Sequence[Candidate], order: Order) -> State:
    """Decide about each candidate, start what is due, and leave the table of all decisions, also in the log."""
    told = Runtime(experiment=experiment_of(order.profile), data_dir=order.parameters["data_dir"])
    runtime = local_runtime(told)
    tracking.ensure_store(runtime.tracking_uri)
    with get_client(sync_client=True) as client:
        rows = list(_decide(client, candidates, order, runtime))
    for row in rows:
        print(f"{row['base model']}  {row['action']}: {row['why']}", flush=True)
    create_table_artifact(rows, key="lori-scout", description="Candidates for the paper, and what became of each")
    counts = Counter(row["action"] for row in rows)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items())
    return Completed(message=summary or "No candidates.", data=rows)


def _decide(
    client: SyncPrefectClient, candidates: Sequence[Candidate], order: Order, runtime: Runtime
) -> Iterator[dict[str, Any]]:
    """A row each, in the order of the candidates, of which the first may start."""
    reports = [report for report in find_reports(runtime, order.profile) if report.tables == PAPER_TABLES]
    num_free = order.limit - count_active(client)
    for candidate in candidates:
        if candidate.identity is None:
            yield _row(candidate, "left out", candidate.problem or "")
            continue
        settings = study_settings(PROFILES[order.profile], candidate.identity)
        if done := [report.run_id for report in reports if report.settings == as_texts(settings)]:
            yield _row(candidate, "done", f"MLflow has its report, in run {done[0]}")
            continue
        key = step_key("full-paper", 1, settings, {})  # what the paper is about, with the base model's revision
        row = _begin(client, candidate, key, order, runtime, is_free=num_free > 0)
        num_free -= row["action"] in (STARTED, WOULD_START)
        yield row


def _begin(
    client: SyncPrefectClient, candidate: Candidate, key: str, order: Order, runtime: Runtime, *, is_free: bool
) -> dict[str, Any]:
    """Start the next attempt, unless there is none left, one is on its way, or the base can't be used."""
    number, last = last_attempt(client, key, order.max_attempts)
    attempt = f"attempt {number} of {order.max_attempts}"
    if last and (standing := _standing(candidate, attempt, last, is_last=number == order.max_attempts)):
        return standing
    if not is_free:
        why = f"only {order.limit} may wait or run at once: a later scout starts it, or raise `limit`"
        return _row(candidate, "waits", why)
    try:
        candidate = check_candidate(candidate, order.filters)
        # As the paper will ask itself, but before it is asked for
        profile = checked_profile.profile(order.profile, base=candidate.base, data_dir=runtime.data_dir)
        check_usable(profile, plan_only=False)
    except (ValueError, RuntimeError) as error:
        return _row(candidate, "left out", str(error))
    why = f"attempt {number + 1} of {order.max_attempts}"
    if order.dry_run:
        return _row(candidate, WOULD_START, f"{why}: set `dry_run` to false to start it")
    run = start_paper(client, candidate, f"{key}:{number + 1}", order)
    return _row(candidate, STARTED, why, url_for("flow-run", run.id))


def _standing(candidate: Candidate, attempt: str, run: FlowRun, *, is_last: bool) -> dict[str, Any] | None:
    """What the newest attempt decides; None if the next one is due."""
    state, url = run.state, url_for("flow-run", run.id)
    if state is None or not state.is_final():
        return _row(candidate, "running", f"{attempt} is waiting or running", url)
    if state.is_cancelled():
        return _row(candidate, "cancelled", f"{attempt} was cancelled: delete its flow run to start it again", url)
    if is_last:
        how = "completed without a report in MLflow" if state.is_completed() else f"failed ({state.message})"
        return _row(candidate, "gave up", f"{attempt} {how}: raise `max_attempts` to start another", url)
    return None


def _row(candidate: Candidate, action: str, why: str, url: str | None = None) -> dict[str, Any]:
    """What becomes of a candidate, and why; `url` is of its flow run."""
    size = candidate.num_parameters
    return {
        "base model": candidate.identity or candidate.base_model,
        "action": action,
        "why": why,
        "parameters": size and f"{size / BILLION:.2f} B",
        "licence": candidate.licence,
        "flow run": url,
    }


def last_attempt(client: SyncPrefectClient, key: str, max_attempts: int) -> tuple[int, FlowRun | None]:
    """The newest flow run of a paper, and the number of the attempt; 0 if there is none."""
    numbers = {f"{key}:{number}": number for number in range(1, max_attempts + 1)}
    same_key = FlowRunFilter.model_validate({"idempotency_key": {"any_": list(numbers)}})
    found = {
        numbers[run.idempotency_key or ""]: run
        for run in client.read_flow_runs(flow_run_filter=same_key, limit=max_attempts)
    }
    number = max(found, default=0)
    return number, found.get(number)


def count_active(client: SyncPrefectClient) -> int:
    """How many papers that were asked for here wait or run."""
    active = {"tags": {"all_": [TAG]}, "state": {"type": {"not_any_": list(TERMINAL_STATES)}}}
    return client.count_flow_runs(flow_run_filter=FlowRunFilter.model_validate(active))


def start_paper(client: SyncPrefectClient, candidate: Candidate, key: str, order: Order) -> FlowRun:
    """Ask for an attempt. It belongs to itself: a scout that ends or is cancelled takes no paper with it.

    Raises:
        RuntimeError: if the deployment does not exist.
    """
    try:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise RuntimeError(
            f"This Prefect server has no deployment {DEPLOYMENT}: create it with `python -m flows.servers.bootstrap`."
        ) from error
    return client.create_flow_run_from_deployment(
        deployment.id,
        parameters={**order.parameters, "profile": order.profile, "base_model": candidate.base_model},
        idempotency_key=key,
        name=f"lori {order.profile} {candidate.identity}",
        tags=["lori", TAG, f"base:{candidate.identity}"],
    )
