"""Each link of a study opens on its rows, in the order of columns that views.yaml says, with its charts."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from playwright.sync_api import Page

from flows.servers.services import choose_port, start, stop, wait_until_healthy
from helpers.browser import browser, chart_texts, columns, open_charts, open_page, open_table, rows
from tasks.machine import ROOT

VIEWS = yaml.safe_load((ROOT / "mlflow/views.yaml").read_text())["views"]
SUITES = {"lori-single": "single", "lori-merging": "merging", "lori-continual": "continual"}


@dataclass(frozen=True)
class Study:
    """Where its MLflow answers, the links that it printed by the name of the view, and that of its report."""

    mlflow: str
    links: dict[str, str]
    report: str
    printed: str  # by the start script


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A smoke paper on a server."""
    directory, port = tmp_path_factory.mktemp("pages"), choose_port("NO_SUCH_PORT")
    uri = f"http://127.0.0.1:{port}"
    command = ["bash", str(ROOT / "mlflow/start.sh"), str(port), str(directory / "mlflow")]
    service = start("mlflow", command, log_dir=directory, cwd=directory, env=environment(directory))
    try:
        wait_until_healthy(service, f"{uri}/health")
        run = [sys.executable, "-m", "flows", "full-paper", "--profile", "smoke"]
        env = environment(directory, MLFLOW_TRACKING_URI=uri)
        done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        links = dict(re.findall(r"^ +(\d\d [\w -]+): (http.*)$", done.stdout, re.MULTILINE))
        (report,) = re.findall(r"^MLflow: +(http.*)$", done.stdout, re.MULTILINE)
        yield Study(uri, links, report, service.log.read_text())
    finally:
        stop(service)


def environment(directory: Path, **own: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LORI_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**inherited, "LORI_DIR": str(directory / "state"), "PATH": path, **own}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


def link_of(study: Study, view: str) -> str:
    return study.links[VIEWS[view]["name"]]


@pytest.mark.parametrize("view", SUITES)
def test_a_table_has_the_rows_of_its_suite_the_best_first_and_the_columns_in_our_order(
    study: Study, page: Page, view: str
) -> None:
    open_table(page, link_of(study, view))
    client = MlflowClient(study.mlflow)
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    order = VIEWS[view]["order_by"][0].removeprefix("m:")
    results = client.search_runs([experiment.experiment_id], f"tags.`lori.suite` = '{SUITES[view]}'")
    scores = {run.info.run_name: run.data.metrics[order] for run in results}
    shown = rows(page)
    assert sorted(shown) == sorted(scores)
    assert [scores[name] for name in shown] == sorted(scores.values(), reverse=True)
    logged = {f"p:{name}" for run in results for name in run.data.params}
    logged |= {f"m:{name}" for run in results for name in run.data.metrics}
    wanted = [column.partition(":")[2] for column in VIEWS[view]["columns"] if column in logged]
    assert [title for title in columns(page) if title in wanted] == wanted


@pytest.mark.parametrize("view", VIEWS)
def test_charts_are_those_of_the_file_and_no_others_are_above_them(study: Study, page: Page, view: str) -> None:
    open_charts(page, link_of(study, view))
    kinds = [VIEWS[view].get(kind, {}) for kind in ("bars", "lines", "scatter")]
    text = page.locator("body").inner_text()
    for headings in kinds:
        for heading in headings:
            assert re.search(rf"{re.escape(heading)}\s*\(\d\)", text), heading
    first = next(iter(next(filter(None, kinds)).values()))[0]
    assert chart_texts(page).startswith(first[:8])


def test_the_start_script_prints_the_links_too(study: Study) -> None:
    for link in study.links.values():
        assert link.partition("&compareRunsMode")[0] in study.printed


def test_curves_are_averaged_by_method(study: Study, page: Page) -> None:
    open_charts(page, link_of(study, "lori-curves"))
    text = page.locator("body").inner_text()
    assert "Group by: lori.method" in text
    assert all(f"Group: {method}" in text for method in ("lora", "lori-d", "lori-s"))


def test_the_description_of_the_experiment_leads_to_the_views(study: Study, page: Page) -> None:
    open_table(page, link_of(study, "lori-single"))
    page.get_by_text("Views, in the order of the paper").click()
    for name, link in study.links.items():
        href = page.get_by_role("link", name=name).get_attribute("href")
        assert f"{study.mlflow}/{href}" == link


def test_the_link_of_the_report_shows_its_tables_and_figures(study: Study, page: Page) -> None:
    open_page(page, study.report)
    body = page.frame_locator("iframe").locator("body")
    assert "One adapter per domain" in body.inner_text()
    images = body.locator("img").evaluate_all("images => images.map(image => [image.alt, image.naturalWidth])")
    captions = [caption.partition(",")[0] for caption, _ in images]
    assert captions == [
        "The paper's figure 1 with the numbers of this run",
        "One adapter per domain",
        "Adapters of all domains merged into one",
        "Continual learning",
        "Cosine of two domains' updates",
        "Overlap of two domains' masks beyond chance",
        "Sparsity of each domain's mask by layer and projection: the paper's figure 3",
    ]
    assert all(width > 300 for _, width in images)


def test_a_rows_run_shows_the_adapters_that_it_is_the_mean_of(study: Study, page: Page) -> None:
    open_table(page, link_of(study, "lori-single"))
    page.get_by_role("link", name="lori-s", exact=True).click()
    page.get_by_text("lori-s-nlu-seed0").first.wait_for()
    assert "lori-s-safety-seed0" in page.locator("body").inner_text()
