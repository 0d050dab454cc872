"""New base models: which there are, which have their paper already, and the paper of the next ones."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.urls import url_for
from pydantic import Field

from flows.paper_runs import attempts_at, count_active, paper_key, start_paper
from flows.study.checks import check_usable
from lori.base_models.candidates import (
    BILLION,
    Candidate,
    Entry,
    Filters,
    HubSearch,
    check_candidate,
    find_candidates,
    read_entries,
)
from lori.base_models.resolve import split_base
from lori.choices.profiles import PROFILES
from lori.config import Hardware
from lori.recipes import checked_profile
from tasks import tracking
from tasks.machine import local_runtime
from tasks.report.paper_tables import PAPER_TABLES
from tasks.report.write import study_settings
from tasks.tracking.reports import Report, as_texts, find_reports

Positive = Annotated[int, Field(ge=1)]
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


def run_name() -> str:
    """A flow run's name: what it looks for, as in `scout paper org/new`."""
    about = flow_run.parameters
    where = [about[name] for name in ("collection", "author", "search")]
    return " ".join(filter(None, ["scout", about["profile"], *where, *(about["base_models"] or [])]))


@flow(name="scout", flow_run_name=run_name)
def scout(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    source: str | None = "base-models.yaml",
    base_models: list[str] | None = None,
    collection: str | None = None,
    author: str | None = None,
    search: str | None = None,
    profile: str = "paper",
    max_billions: float = 10.0,
    licences: list[str] | None = None,
    data_dir: str | None = None,
    hardware: Hardware | None = None,
    limit: Positive = 1,
    max_attempts: Positive = 3,
    dry_run: bool = True,
) -> State:
    """Start `lori/full-paper` for base models that have none yet. A table says for each candidate why, or why not.

    Args:
        source: YAML file of candidates, as base-models.yaml; none where empty.
        base_models: More candidates: rows of BASE_MODELS, hub ids `org/name` or `org/name@revision`, or folders.
        collection: Slug of a collection on the hub, the end of its address.
        author: A user or organisation on the hub: its newest text generators are candidates.
        search: Words in the names of text generators on the hub.
        profile: Sizes and defaults of the paper, a row of PROFILES (lori/choices/profiles.py).
        max_billions: Largest size, in billions of parameters.
        licences: The hub's names of licences that will do, such as apache-2.0; any where left out.
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        hardware: GPU, memory and how training is to fit it (lori/config.py).
        limit: Papers that scouts may have waiting and running at once.
        max_attempts: How often a paper that fails is started.
        dry_run: Say what would be started, and start nothing.
    """
    if profile not in PROFILES:
        raise ValueError(f"Unknown profile {profile!r}. Known: {', '.join(PROFILES)} (lori/choices/profiles.py).")
    entries = (read_entries(Path(source).expanduser()) if source else []) + [Entry(name) for name in base_models or []]
    where = HubSearch(collection or None, author or None, search or None)
    if not entries and where == HubSearch():
        raise ValueError("Nothing to look through: name a source, base_models, a collection, an author or a search.")
    runtime = local_runtime()
    tracking.ensure_store(runtime.tracking_uri)
    parameters = {"data_dir": data_dir, "hardware": hardware and asdict(hardware)}
    filters = Filters(max_billions, None if licences is None else tuple(licences))
    order = Order(profile, parameters, filters, limit, max_attempts, dry_run)
    candidates = find_candidates(entries, where, runtime.models_dir)
    with get_client(sync_client=True) as client:
        decisions = list(_decide(client, candidates, find_reports(runtime, profile), order))
    return _publish(decisions)


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
    runtime = local_runtime(data_dir=order.parameters["data_dir"])
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


if __name__ == "__main__":
    from flows.servers.local import main

    main(scout)
