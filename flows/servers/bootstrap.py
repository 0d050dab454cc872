"""Make a Prefect server ready for LoRI: work pools, limits, an automation for lost runs, result storage, deployments.

`python -m flows.servers.bootstrap` talks to the server at `PREFECT_API_URL`. What is there already stays, so that
it can run after every upgrade. Limits and a result storage that no option names are left as they are.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkerStatus, WorkPool
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.filesystems import RemoteFileSystem
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from tasks.machine import ROOT

KUBERNETES_TEMPLATE = ROOT / "deploy/kubernetes/lori-gpu.json"
DRIVER_POOL, GPU_POOL = "lori-cpu", "lori-gpu"
ZOMBIES = "lori-crash-zombies"
RESULTS = "lori-results"
HEARTBEATS = 3  # that may be missed before a run is given up


class BootstrapError(RuntimeError):
    """The server or the options are in the way; the message says what to do."""


@dataclass(frozen=True)
class Options:
    """What a server is to have. With an `image` GPU jobs run on Kubernetes; limits are by `POOL` or `POOL/QUEUE`."""

    wait_seconds: float
    zombie_seconds: int
    image: str | None
    limits: Mapping[str, int | None]
    results: str | None


def bootstrap(options: Options) -> None:
    """Do all of it, and say it line by line.

    Raises:
        BootstrapError: if the server can't be reached or refuses us, or if an option does not fit what is there.
    """
    check_zombie_seconds(options.zombie_seconds)
    if not get_current_settings().api.url:  # Prefect would start a server of its own
        raise BootstrapError("PREFECT_API_URL is not set: name the server, as in http://127.0.0.1:4200/api.")
    with get_client(sync_client=True) as client:
        wait_for_server(client, options.wait_seconds)
        check_access(client)
        ensure_pool(client, DRIVER_POOL, "process", ProcessWorker.get_default_base_job_template())
        if options.image:
            ensure_pool(client, GPU_POOL, "kubernetes", kubernetes_template(options.image))
        else:
            ensure_pool(client, GPU_POOL, "process", ProcessWorker.get_default_base_job_template())
        for place, limit in options.limits.items():
            set_limit(client, place, limit)
        ensure_zombie_automation(client, options.zombie_seconds)
        if options.results:
            ensure_results(client, options.results)
        deploy()
        for line in missing_workers(client):
            say(line)
    for name, page in {"Deployments": "deployments", "Runs": "runs", "Work pools": "work-pools"}.items():
        say(f"{name}: {get_current_settings().ui_url}/{page}")


def wait_for_server(client: SyncPrefectClient, seconds: float) -> None:
    """Wait until the server answers.

    Raises:
        BootstrapError: if it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while isinstance(error := client.api_healthcheck(), httpx.TransportError):
        if time.monotonic() > deadline:
            raise BootstrapError(
                f"No Prefect server answers at PREFECT_API_URL={client.api_url} since {seconds:.0f} s ({error}):"
                " start it, or correct the address."
            )
        time.sleep(0.5)


def check_access(client: SyncPrefectClient) -> None:
    """Raises:
    BootstrapError: if the server refuses us, or if what answers is no Prefect API.
    """
    try:
        client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code == httpx.codes.UNAUTHORIZED:
            raise BootstrapError(
                f"{client.api_url} refuses us (401): set PREFECT_API_AUTH_STRING to the server's"
                " PREFECT_SERVER_API_AUTH_STRING."
            ) from error
        raise BootstrapError(
            f"{client.api_url} is no Prefect API (HTTP {code}): PREFECT_API_URL ends in /api."
        ) from error


def ensure_pool(client: SyncPrefectClient, name: str, kind: str, template: Mapping[str, Any]) -> None:
    """A work pool of this type; on Kubernetes also with this template, which is a file of ours.

    Raises:
        BootstrapError: if there is one of another type.
    """
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=dict(template)))
        say(f"Work pool {name} ({kind}): made")
        return
    except ObjectAlreadyExists:
        pool = client.read_work_pool(name)
    if pool.type != kind:
        raise BootstrapError(
            f"The work pool {name} is of type {pool.type}, not {kind}: `prefect work-pool delete {name}` first."
        )
    if kind == "kubernetes" and pool.base_job_template != template:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=dict(template)))
        say(f"Work pool {name} ({kind}): its template is new")


def kubernetes_template(image: str) -> dict[str, Any]:
    """The template of deploy/kubernetes, for jobs in `image`."""
    template = json.loads(KUBERNETES_TEMPLATE.read_text())
    template["variables"]["properties"]["image"]["default"] = image
    return template


def set_limit(client: SyncPrefectClient, place: str, limit: int | None) -> None:
    """How many flow runs a pool or a queue, `POOL/QUEUE`, may hand out at once. Both are counted without a lease.

    Raises:
        BootstrapError: if there is no such pool or queue.
    """
    pool_name, _, queue_name = place.partition("/")
    try:
        pool = client.read_work_pool(pool_name)
        held: WorkPool | Any = client.read_work_queue_by_name(queue_name, pool_name) if queue_name else pool
    except ObjectNotFound as error:
        raise BootstrapError(f"--limit {place}: this server has no such work pool or queue.") from error
    if held.concurrency_limit == limit:
        return
    if queue_name:
        client.update_work_queue(held.id, concurrency_limit=limit)
    else:
        client.update_work_pool(pool_name, WorkPoolUpdate(concurrency_limit=limit))
    say(f"Limit of {place}: {'none' if limit is None else limit}")


def check_zombie_seconds(seconds: int) -> None:
    """Raises:
    BootstrapError: if runs would be given up although they live.
    """
    heartbeat = get_current_settings().flows.heartbeat_frequency
    if heartbeat is None or seconds < HEARTBEATS * heartbeat:
        raise BootstrapError(
            f"--zombie-seconds {seconds} with a heartbeat each {heartbeat} s: it takes {HEARTBEATS} of them. Set"
            " PREFECT_FLOWS_HEARTBEAT_FREQUENCY (30 or more) here and for all workers."
        )


def ensure_zombie_automation(client: SyncPrefectClient, seconds: int) -> None:
    """Have the server mark a flow run Crashed that is silent for `seconds`: its machine is lost.

    Nobody else does: a worker that is gone can't, and without it a driver would wait for ever.
    """
    message = f"no heartbeat for {seconds} s"
    wanted = AutomationCore(
        name=ZOMBIES,
        description="A flow run that no longer sends heartbeats is lost with its machine.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat", "prefect.flow-run.Pending"},  # lost before its first heartbeat
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
    )
    found = client.read_automations_by_name(ZOMBIES)
    if found and found[0].actions == wanted.actions:  # their message has the seconds
        return
    if found:
        client.update_automation(found[0].id, wanted)
    else:
        client.create_automation(wanted)
    say(f"Automation {ZOMBIES}: after {seconds} s")


def ensure_results(client: SyncPrefectClient, address: str) -> None:
    """Keep results at `address`, such as `s3://bucket/folder`, by a block that is this server's default for results.

    The block holds no secret: credentials are those of each process's environment or machine (`AWS_…`, a role).
    """
    try:
        document = client.read_block_document_by_name(RESULTS, "remote-file-system")
    except ObjectNotFound:
        document = None
    if document is None or document.data["basepath"] != address:
        RemoteFileSystem(basepath=address).save(RESULTS, overwrite=True)
        document = client.read_block_document_by_name(RESULTS, "remote-file-system")
        say(f"Result storage: {address}")
    if client.read_server_default_result_storage().default_result_storage_block_id != document.id:
        client.update_server_default_result_storage(default_result_storage_block_id=document.id)


def deploy() -> None:
    """All of prefect.yaml.

    Raises:
        BootstrapError: if Prefect refuses one of its deployments.
    """
    # LORI_HOME is unset, or its value would be written into the deployments: each worker fills in its own
    environment = {name: value for name, value in os.environ.items() if name != "LORI_HOME"}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BootstrapError(f"`prefect deploy --all` failed:\n{done.stdout}{done.stderr}")
    say(f"Deployments: {done.stdout.count('successfully created')} of prefect.yaml")


def missing_workers(client: SyncPrefectClient) -> Iterator[str]:
    """What to do about each pool that nobody works for."""
    for name in (DRIVER_POOL, GPU_POOL):
        workers = client.read_workers_for_work_pool(name)
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            limit = " --limit <GPUs of its machine>" if name == GPU_POOL else ""
            yield f"No worker is online for {name}: start one with `prefect worker start --pool {name}{limit}`."


def say(line: str) -> None:
    """A line for the user, at once."""
    print(line, flush=True)


def _limit(text: str) -> tuple[str, int | None]:
    place, _, number = text.partition("=")
    if number != "none" and not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not POOL=N, POOL/QUEUE=N or …=none")
    return place, None if number == "none" else int(number)


def _address(text: str) -> str:
    if not text.startswith("s3://") or len(text) <= len("s3://"):
        raise argparse.ArgumentTypeError(f"{text!r} is not s3://BUCKET/FOLDER")
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the Prefect server at PREFECT_API_URL ready for LoRI.")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS", help="for the server; 60 if left out")
    parser.add_argument(
        "--zombie-seconds", type=int, default=540, help="silence after which a run is lost; 540 = 3 heartbeats"
    )
    parser.add_argument("--kubernetes", metavar="IMAGE", help="run GPU jobs on Kubernetes, in this image")
    parser.add_argument(
        "--limit", type=_limit, action="append", default=[], metavar="POOL[/QUEUE]=N", help="runs at once; none: all"
    )
    parser.add_argument("--results", type=_address, metavar="s3://BUCKET/FOLDER", help="where results are kept")
    told = parser.parse_args()
    options = Options(told.wait, told.zombie_seconds, told.kubernetes, dict(told.limit), told.results)
    try:
        bootstrap(options)
    except BootstrapError as error:
        sys.exit(f"lori: {error}")


if __name__ == "__main__":
    main()
