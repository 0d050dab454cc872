"""The scout: which base models it finds, what it says of each, and that a paper is asked for once."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed, Failed

from flows.deployments import full_paper, scout
from flows.paper_runs import DEPLOYMENT
from helpers.hub import COMMIT
from helpers.rows import real_data_dir
from helpers.searched_hub import ScoutedHub
from helpers.small_base import small_llama
from helpers.waiting import PATIENCE
from lori.base_models.candidates import Entry, HubSearch, find_candidates
from lori.base_models.resolve import BASE_MODELS, base_model

SCALE = BASE_MODELS["scale"]

OTHER_COMMIT = "f" * 40
LARGE = 70 * 10**9


@pytest.fixture(scope="module")
def data_dir(state_dir: Path) -> Path:
    return real_data_dir(state_dir / "rows")


@pytest.fixture(scope="module")
def llama(state_dir: Path, data_dir: Path) -> Path:
    """The folder of a base model that the paper's flow can use."""
    return small_llama(state_dir / "bases" / "tiny", data_dir)


@pytest.fixture
def papers(state_dir: Path) -> Iterator[UUID]:
    """The deployment `lori/full-paper`, of which no worker takes any run; its flow runs end with the test."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(full_paper)
        schema = full_paper.to_deployment(DEPLOYMENT.partition("/")[2])._parameter_openapi_schema
        deployment_id = client.create_deployment(
            flow_id, "full-paper", parameter_openapi_schema=schema.model_dump(), enforce_parameter_schema=True
        )
        yield deployment_id
        for run in runs():
            client.delete_flow_run(run.id)


def runs() -> list[FlowRun]:
    """The papers that were asked for, the oldest first."""
    with get_client(sync_client=True) as client:
        found = [run for run in client.read_flow_runs() if run.deployment_id]
    return sorted(found, key=lambda run: run.created)


def end(run: FlowRun, state: Any) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)


def scouted(*base_models: str, profile: str = "smoke", dry_run: bool = False, **parameters: Any) -> list[list[str]]:
    """What the scout says of base models that are named: action and reason."""
    rows = scout(source=None, base_models=[*base_models], profile=profile, dry_run=dry_run, **parameters)
    return [[row["action"], row["why"]] for row in rows]


def test_a_dry_run_says_what_would_start_and_starts_nothing(papers: UUID) -> None:
    assert scouted("scale", dry_run=True) == [["would start", "attempt 1 of 3: set `dry_run` to false to start it"]]
    assert runs() == []


def test_a_paper_is_asked_for_once_at_the_revision_that_was_found(papers: UUID) -> None:
    assert scouted("scale") == [["started", "attempt 1 of 3"]]
    assert scouted("scale", SCALE.identity) == [["running", "attempt 1 of 3 is waiting or running"]]
    (run,) = runs()
    assert run.deployment_id == papers
    assert (run.parameters["profile"], run.parameters["base_model"]) == ("smoke", SCALE.identity)
    assert run.name == f"lori smoke {base_model('scale').identity}"
    assert run.parent_task_run_id is None  # a scout that is cancelled takes no paper with it


def test_another_profile_is_another_paper(papers: UUID) -> None:
    assert [*scouted("scale"), *scouted("scale", profile="scale", limit=2)] == 2 * [["started", "attempt 1 of 3"]]
    assert len(runs()) == 2


def test_no_more_papers_than_the_limit_wait_or_run_whoever_asked_for_them(
    papers: UUID, llama: Path, data_dir: Path
) -> None:
    place = {"profile": "paper-smoke", "data_dir": str(data_dir)}
    waits = ["waits", "only 1 may wait or run at once: a later scout starts it, or raise `limit`"]
    assert scouted("scale", profile="scale") == [["started", "attempt 1 of 3"]]
    assert scouted(str(llama), **place) == [waits]
    assert scouted(str(llama), **place, limit=2) == [["started", "attempt 1 of 3"]]
    assert runs()[1].parameters["base_model"] == str(llama)
    assert runs()[1].parameters["data_dir"] == str(data_dir)


def test_of_several_candidates_the_first_starts(papers: UUID, tmp_path: Path, llama: Path, data_dir: Path) -> None:
    twin = shutil.copytree(llama, tmp_path / "twin")
    found = scouted(str(llama), str(twin), profile="paper-smoke", data_dir=str(data_dir))
    assert [action for action, _ in found] == ["started", "waits"]


def test_a_paper_that_failed_is_tried_again_but_not_for_ever(papers: UUID) -> None:
    for number in (1, 2):
        assert scouted("scale", max_attempts=2) == [["started", f"attempt {number} of 2"]]
        end(runs()[-1], Crashed(message="the machine went away") if number == 1 else Failed(message="disk full"))
    assert scouted("scale", max_attempts=2) == [
        ["gave up", "attempt 2 of 2 failed (disk full): raise `max_attempts` to start another"]
    ]
    assert scouted("scale", max_attempts=3) == [["started", "attempt 3 of 3"]]


def test_a_paper_that_somebody_cancelled_stays_cancelled_until_its_flow_run_is_deleted(papers: UUID) -> None:
    scouted("scale")
    end(runs()[0], Cancelled())
    assert [action for action, _ in scouted("scale")] == ["cancelled"]
    with get_client(sync_client=True) as client:
        client.delete_flow_run(runs()[0].id)
    assert scouted("scale") == [["started", "attempt 1 of 3"]]


def test_the_table_of_the_flow_run_has_every_candidate_and_its_reason(papers: UUID, tmp_path: Path) -> None:
    source = tmp_path / "bases.yaml"
    source.write_text("base_models: [scale, llama-9, {base_model: org/model, licence: mit}]")
    scout(source=str(source), profile="smoke", dry_run=True)
    with get_client(sync_client=True) as client:
        newest = max((a for a in client.read_artifacts() if a.key == "lori-scout"), key=lambda a: a.created)
    scale, unknown, hub = json.loads(newest.data)
    assert (scale["base model"], scale["action"]) == (SCALE.identity, "would start")
    assert re.fullmatch(r"0\.00 B", scale["parameters"])  # 1.4 million
    assert re.search("Unknown base model 'llama-9'. Known: scale", unknown["why"])
    assert re.search("Its commit is not known, as the hub does not answer .*`revision`", hub["why"])
    assert (hub["action"], hub["licence"]) == ("left out", "mit")


def test_a_base_that_the_paper_could_not_use_is_left_out_before_anything_starts(
    papers: UUID, tmp_path: Path, llama: Path, data_dir: Path
) -> None:
    broken = shutil.copytree(llama, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    scouting = {"profile": "paper-smoke", "data_dir": str(data_dir)}
    cases = [
        (str(broken), {}, r"has no model\.safetensors"),
        (
            str(llama),
            {"max_billions": 1e-6},
            r"It has 0\.00 billion parameters, more than the 1e-06 of `max_billions`",
        ),
        (str(llama), {"licences": ["mit"]}, "Its licence is not known, and `licences` allows only mit"),
        (str(llama), {"data_dir": str(tmp_path)}, "commonsense"),
    ]
    for base, changes, reason in cases:
        ((action, why),) = scouted(base, **{**scouting, **changes})
        assert action == "left out"
        assert re.search(reason, why), why
    assert runs() == []


def test_without_the_hub_rows_folders_and_commits_are_found(llama: Path) -> None:
    entries = [
        Entry("mistral-7b"),
        Entry(str(llama)),
        Entry("org/model", revision=COMMIT, licence="mit"),
        Entry(f"org/model@{OTHER_COMMIT}"),
        Entry("org/model", revision="main"),
        Entry("mistral-7b", revision=COMMIT),
        Entry("mistral-7b"),
    ]
    found = find_candidates(entries, HubSearch(author="org"))
    assert [candidate.identity for candidate in found] == [
        f"mistral-7b@{BASE_MODELS['mistral-7b'].revision}",
        base_model(str(llama)).identity,
        f"org/model@{COMMIT}",
        f"org/model@{OTHER_COMMIT}",
        None,
        None,
        None,
    ]
    branch, row, search = [candidate.problem or "" for candidate in found[4:]]
    assert "Its commit is not known" in branch
    assert "is a row of BASE_MODELS at 27d67f1b" in row
    assert "The hub can't be searched" in search


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"profile": "huge"}, ParameterTypeError, "profile: Input should be 'scale'"),
        ({"source": None}, ValueError, "There is nowhere to look: set `source`"),
        ({"limit": 0}, ParameterTypeError, "limit"),
        ({"max_attempts": "many"}, ParameterTypeError, "max_attempts"),
    ],
)
def test_wrong_parameters_are_refused(state_dir: Path, parameters: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        scout(**parameters)


def test_without_the_papers_deployment_the_scout_says_how_to_make_it(papers: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.delete_deployment(papers)
    with pytest.raises(RuntimeError, match=r"no deployment lori/full-paper: .*flows\.servers\.bootstrap"):
        scouted("scale")


SCOUT = """
import json, sys
from flows.deployments import scout
for parameters in json.load(sys.stdin):
    try:
        print("ROWS", json.dumps(scout(**parameters)))
    except ValueError as error:
        print("ROWS", json.dumps(str(error)))
"""


@pytest.fixture
def hub(llama: Path, tmp_path: Path) -> Iterator[str]:
    encoder = shutil.copytree(llama, tmp_path / "encoder")
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    ScoutedHub.folders = {"org/good": llama, "org/large": llama, "org/strict": llama, "org/encoder": encoder}
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScoutedHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_the_hub_offers_is_run_or_has_its_reason(
    papers: UUID, hub: str, llama: Path, data_dir: Path, tmp_path: Path
) -> None:
    common = {"source": None, "profile": "paper-smoke", "data_dir": str(data_dir), "licences": ["mit"]}
    asked = [
        {**common, "author": "org", "limit": 2, "dry_run": False},
        {**common, "collection": "org/new-0123", "limit": 2},
        {**common, "collection": "org/none"},
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": hub,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment = {**clean, **settings, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-c", SCOUT]
    done = subprocess.run(
        command, input=json.dumps(asked), env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    answers = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("ROWS ")]
    assert len(answers) == 3, done.stderr[-3000:]
    of_author, of_collection, of_none = answers

    reasons = {row["base model"].partition("@")[0]: f"{row['action']}: {row['why']}" for row in of_author}
    assert list(reasons) == [*ScoutedHub.listed]
    assert reasons["org/good"] == "started: attempt 1 of 3"
    assert "70.00 billion parameters, more than the 10 of `max_billions`" in reasons["org/large"]
    assert "Its licence is cc-by-nc-4.0, and `licences` allows only mit" in reasons["org/strict"]
    assert "no causal language model but of BertForMaskedLM" in reasons["org/encoder"]
    assert re.search(r"left out: org/gated is gated, .*https://\S+/org/gated", reasons["org/gated"])
    (run,) = runs()
    assert run.parameters["base_model"] == f"org/good@{COMMIT}"

    assert [(row["base model"], row["action"]) for row in of_collection] == [
        (f"org/good@{COMMIT}", "running"),
        ("org/gone", "left out"),
    ]
    assert "There is no model 'org/gone' on the hub" in of_collection[1]["why"]
    assert "There is no collection 'org/none' on the hub" in of_none
