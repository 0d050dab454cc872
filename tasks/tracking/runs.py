"""Runs: found or made by key, with their parameters, results and curves."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from lori.config import Runtime, canonical
from tasks.tracking.client import KEY_TAG, connect, experiment_id_of, is_server, key_lock
from tasks.tracking.origin import provenance

ELECTED_TAG = "lori.elected"  # "no" of a run that is a candidate for its key; runs older than elections have none
BALLOT_TAG = "lori.run"  # of a ballot: the id of the run that it elects
MAX_RIVALS = 4  # that open one run at the same moment
MAX_BATCH = 1000  # metrics a request, MLflow's limit
ALIVE_TAG = "lori.alive"  # when somebody last worked on the run, in seconds since 1970
ALIVE_SECONDS, STALE_SECONDS = 60, 600
MAX_VALUE = 6000  # characters of a parameter, MLflow's limit


def open_run(
    runtime: Runtime, key: str, name: str, *, experiment: str, tags: Mapping[str, str], params: Mapping[str, Any]
) -> str:
    """The id of the run of `key`, RUNNING: the one an earlier attempt left, or a new one.

    Raises:
        RuntimeError: if that run has another value for one of `params`: one key, two configs.
    """
    client = connect(runtime.tracking_uri)
    experiment_id = experiment_id_of(runtime.tracking_uri, experiment)
    with key_lock(runtime, key):
        run = _run_of(client, experiment_id, key, name)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        asked = {"lori.flow_run": runtime.flow_run} if runtime.flow_run else {}
        identity = {KEY_TAG: key, ELECTED_TAG: "yes", **provenance(), **asked, **tags}
        _log_identity(client, run, identity, param_texts(params))
    return run.info.run_id


def _run_of(client: MlflowClient, experiment_id: str, key: str, name: str) -> Run:
    """The oldest run of `key`, or the one that wins its election; every other candidate is deleted.

    Only candidates of machines that share no lock meet here. One that a killed process left runs again.
    """
    query = f"tags.`{KEY_TAG}` = '{key}'"
    found = list(client.search_runs([experiment_id], query, order_by=["attributes.start_time", "attributes.run_id"]))
    candidates = [run for run in found if run.data.tags.get(ELECTED_TAG) == "no"]
    elected = next((run for run in found if run.data.tags.get(ELECTED_TAG) != "no"), None)
    if elected is None:
        if not candidates:
            candidates = [client.create_run(experiment_id, run_name=name, tags={KEY_TAG: key, ELECTED_TAG: "no"})]
        elected = _elect(client, candidates[0], key)
    for run in candidates:
        if run.info.run_id != elected.info.run_id:
            client.delete_run(run.info.run_id)
    return elected


def _elect(client: MlflowClient, candidate: Run, key: str) -> Run:
    """The run that the first ballot of `key` names; after somebody deleted that run, the next ballot decides."""
    for number in count(1):
        run_id = _cast(client, f"lori.ballot/{candidate.info.experiment_id}/{key}/{number}", candidate.info.run_id)
        if run_id == candidate.info.run_id:
            return candidate
        if (run := _active_run(client, run_id)) is not None:
            return run
    raise AssertionError("unreachable")


def _cast(client: MlflowClient, ballot: str, run_id: str) -> str:
    """The id of the run that `ballot` names: of several that are cast under one name the database keeps the first.

    A ballot is an experiment. MLflow's database has each experiment's name once, also if the experiment is deleted,
    and stores the tags with it. It is deleted at once, so that no page lists it.
    """
    try:
        client.create_experiment(ballot, tags={BALLOT_TAG: run_id})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    kept = client.get_experiment_by_name(ballot)
    assert kept is not None
    if kept.lifecycle_stage == "active":
        with suppress(MlflowException):  # a rival deleted it first
            client.delete_experiment(kept.experiment_id)
    return kept.tags[BALLOT_TAG]


def _active_run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _log_identity(client: MlflowClient, run: Run, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
    """Log the tags, and the parameters that the run has not yet.

    MLflow refuses what another machine logs at the same moment; then that is there when it is looked for again.
    """
    for attempt in range(MAX_RIVALS):
        _check_params(run, params)
        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        texts = [RunTag(name, text) for name, text in tags.items()]
        try:
            client.log_batch(run.info.run_id, params=missing, tags=texts)
            return
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST" or attempt == MAX_RIVALS - 1:
                raise
            run = client.get_run(run.info.run_id)


def _check_params(run: Run, params: Mapping[str, str]) -> None:
    logged = run.data.params
    clashes = [
        f"{name}: {logged[name]!r}, now {text!r}" for name, text in params.items() if logged.get(name, text) != text
    ]
    if clashes:
        raise RuntimeError(
            f"MLflow run {run.info.run_id} ({run.info.run_name}) has the key {run.data.tags[KEY_TAG]} with other"
            f" parameters ({'; '.join(clashes)}). One key stands for one config: raise the step's version in"
            " tasks/steps.py, or delete that run."
        )


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """MLflow's text of each value, cut where MLflow would cut it."""
    return {name: str(canonical(value))[:MAX_VALUE] for name, value in params.items()}


def close_run(runtime: Runtime, run_id: str, status: str = "FINISHED") -> None:
    """End the run; `status` is MLflow's FINISHED, FAILED or KILLED."""
    connect(runtime.tracking_uri).set_terminated(run_id, status)


@contextmanager
def logged_run(
    runtime: Runtime, key: str, name: str, *, tags: Mapping[str, str], params: Mapping[str, Any]
) -> Iterator[str]:
    """The run of `key`, from `open_run`; at the end it is FINISHED, FAILED if what is done in it raises, or KILLED.

    As long as it is open, its tag `lori.alive` is renewed: of a machine that is lost nobody else would know.
    """
    run_id = open_run(runtime, key, name, experiment=runtime.experiment, tags=tags, params=params)
    over = threading.Event()
    threading.Thread(target=_keep_alive, args=(runtime, run_id, over), daemon=True).start()
    try:
        yield run_id
    except BaseException as error:
        over.set()
        with suppress(MlflowException):  # whatever went wrong is what is told; `close_stale_runs` closes it later
            close_run(runtime, run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    over.set()
    close_run(runtime, run_id)


def _keep_alive(runtime: Runtime, run_id: str, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(MlflowException):  # a server that is away: the work goes on, and so does this
            connect(runtime.tracking_uri).set_tag(run_id, ALIVE_TAG, str(int(time.time())))
        over.wait(ALIVE_SECONDS)


def close_stale_runs(runtime: Runtime) -> None:
    """Close as KILLED what is RUNNING although nobody has worked on it for STALE_SECONDS: its machine was lost."""
    for run in _running(runtime, "attributes.status = 'RUNNING'"):
        alive = int(run.data.tags.get(ALIVE_TAG, run.info.start_time // 1000))
        if KEY_TAG in run.data.tags and time.time() - alive > STALE_SECONDS:
            close_run(runtime, run.info.run_id, "KILLED")


def close_run_of(runtime: Runtime, key: str) -> None:
    """Close the run of `key` as KILLED if it is RUNNING: who worked on it is gone. Later, if MLflow can't be asked."""
    with suppress(MlflowException):
        for run in _running(runtime, f"attributes.status = 'RUNNING' and tags.`{KEY_TAG}` = '{key}'"):
            close_run(runtime, run.info.run_id, "KILLED")


def _running(runtime: Runtime, query: str) -> list[Run]:
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    return list(connect(runtime.tracking_uri).search_runs([experiment_id], query))


def log_metrics(runtime: Runtime, run_id: str, metrics: Mapping[str, float]) -> None:
    """Results of the whole run, at step 0 and the run's start.

    A value that is there already is not logged again. One that differs (seconds of a second attempt) is logged with
    the present time: MLflow shows the latest, and of two at one time the largest.
    """
    client = connect(runtime.tracking_uri)
    run = client.get_run(run_id)
    logged, now = run.data.metrics, time.time_ns() // 1_000_000
    points = [
        Metric(name, value, now if name in logged else run.info.start_time, 0)
        for name, value in metrics.items()
        if logged.get(name) != value
    ]
    _log_points(client, run_id, points)


def card_lock(runtime: Runtime, key: str) -> AbstractContextManager[None]:
    """Held while the model card of a result is written."""
    return key_lock(runtime, f"card-{key}")


def log_curve(runtime: Runtime, run_id: str, points: Sequence[Mapping[str, float]]) -> None:
    """Training curves: each point has `step`, `time_ms` (since 1970) and values by metric name.

    A step that the run has is left as it is, so that a second attempt completes the first and doubles nothing.
    """
    client = connect(runtime.tracking_uri)
    names = {name for point in points for name in point} - {"step", "time_ms"}
    begun = names & client.get_run(run_id).data.metrics.keys()
    logged = {(name, metric.step) for name in begun for metric in client.get_metric_history(run_id, name)}
    metrics = [
        Metric(name, point[name], int(point["time_ms"]), int(point["step"]))
        for point in points
        for name in point.keys() & names
        if (name, int(point["step"])) not in logged
    ]
    _log_points(client, run_id, metrics)


def _log_points(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    for start in range(0, len(metrics), MAX_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])


def run_metrics(runtime: Runtime, run_id: str) -> dict[str, float]:
    """The newest value of each metric."""
    return dict(connect(runtime.tracking_uri).get_run(run_id).data.metrics)


def run_tags(runtime: Runtime, run_ids: Iterable[str]) -> list[dict[str, str]]:
    """The tags of each run: with what it was computed."""
    client = connect(runtime.tracking_uri)
    return [dict(client.get_run(run_id).data.tags) for run_id in run_ids]


def set_tag(runtime: Runtime, run_id: str, name: str, value: str) -> None:
    """Of a run."""
    connect(runtime.tracking_uri).set_tag(run_id, name, value)


def find_tags(runtime: Runtime, role: str, tag: str) -> dict[str, str]:
    """By key, the value of `tag` of the finished runs of that role."""
    client = connect(runtime.tracking_uri)
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    query = f"tags.`lori.role` = '{role}' and attributes.status = 'FINISHED' and tags.`{tag}` LIKE '%'"
    found, token = {}, None
    while True:
        page = client.search_runs([experiment_id], query, max_results=MAX_BATCH, page_token=token)
        found |= {run.data.tags[KEY_TAG]: run.data.tags[tag] for run in page}
        if not (token := page.token):
            return found


def run_url(runtime: Runtime, run_id: str, artifact: str = "") -> str:
    """The page of a run, or of an artifact of it such as `report/index.html`; empty without a server.

    Opened in MLflow's view for training rather than that for agents.
    """
    if not is_server(runtime.tracking_uri):
        return ""
    experiment_id = connect(runtime.tracking_uri).get_run(run_id).info.experiment_id
    place = f"{run_id}/artifacts/{artifact}" if artifact else run_id
    page = f"#/experiments/{experiment_id}/runs/{place}?workflowType=machine_learning"
    return f"{runtime.tracking_uri.rstrip('/')}/{page}"
