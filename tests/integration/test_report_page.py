"""The report's page in a browser: nothing of it is cut, on a narrow window or on paper, and it has a dark mode."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page

from helpers.browser import browser
from helpers.report_inputs import INTERVALS, adapter, merged, pair_of, report, scores, single, tracked
from helpers.stores import Store
from tasks import tracking
from tasks.report.write import Cell

METHODS = ("base", "full", "lora", "dora", "lori-d", "lori-s", "lori-s-random-mask", "lori-d-trained-a")
METHODS += ("lori-s-trained-a", "lori-s-fresh-a")  # those that the flow of the claims has single adapters of
NARROW, A4 = 800, 703  # pixels: of a window; of a sheet between its margins, (210 - 2 · 12) mm at 96 dots an inch
TABLES = (
    """tables => tables.map(table => [table.querySelectorAll("th").length, table.scrollWidth - table.clientWidth])"""
)
RIGHT = """cells => Math.max(...cells.map(cell => cell.getBoundingClientRect().right))"""
# Whether each is on one line
WHOLE = """spans => spans.every(span => span.getClientRects().length === 1)"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def widest(sqlite_store: Store) -> Path:
    """The page of a report with ten methods, four domains, and another base beside its own."""
    values = {"nlu": 100.0, "math": 88.25, "code": 75.5, "safety": 99.0}
    over = {"safety/over_refusal_rate": 30.0, "safety/over_refusal_rate_se": 9.0}
    cells = []
    for method in METHODS:
        of_method = [single(method, domain, value, num_trainable=1404320) for domain, value in values.items()]
        cells += [replace(cell, scores=[replace(cell.scores[0], metrics={**cell.scores[0].metrics, **over})])
                  for cell in of_method]  # fmt: skip
        cells.append(merged(method, "magnitude", values, weights=(0.25, 0.125, 0.5, 0.3)))
        labels = {"method": method, "first_domain": "safety", "new_domain": "code", "seed": 0}
        after = [
            scores("before", "safety", 90.0),
            scores("after", "safety", 70.0, **over),
            scores("after", "code", 60.0),
        ]
        cells.append(Cell("continual", labels, adapter("after", method=method, domain="code"), after))
        labels = {"method": method, "setting": "weight of concat", "value": "0.25", "seed": 0}
        cells.append(replace(cells[-2], table="ablations", row=labels))
    here = [tracked(sqlite_store, cell) for cell in cells]
    report(sqlite_store, here, base_model="scale@0123456789ab")
    pairs = {method: [pair_of(["safety", "math"], 0.2, 1.1)] for method in METHODS}
    handle, _ = report(
        sqlite_store, here, intervals=INTERVALS, pairs=pairs, base_model="scale@ba9876543210", name="smoke"
    )
    return tracking.fetch(sqlite_store.runtime, handle) / "index.html"


def test_no_table_is_cut_in_a_narrow_window_or_on_paper(page: Page, widest: Path) -> None:
    page.set_viewport_size({"width": NARROW, "height": 1000})
    page.goto(widest.as_uri())
    tables = page.locator("table").evaluate_all(TABLES)
    assert max(columns for columns, _ in tables) > len(METHODS)
    assert [columns for columns, hidden in tables if hidden > 0] == []
    page.emulate_media(media="print")
    page.set_viewport_size({"width": A4, "height": 1000})
    assert page.locator("td, th, img").evaluate_all(RIGHT) <= A4
    assert page.locator("table:not(.wide) td span").evaluate_all(WHOLE)
    page.emulate_media(media="screen")


def test_the_page_is_dark_where_the_reader_wants_it(page: Page, widest: Path) -> None:
    page.goto(widest.as_uri())
    colours = "body => [getComputedStyle(body).color, getComputedStyle(body).backgroundColor]"
    shown = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        text, paper = page.locator("body").evaluate(colours)
        shown[scheme] = _brightness(text) < _brightness(paper)
    page.emulate_media(color_scheme="light")
    assert shown == {"light": True, "dark": False}


def _brightness(colour: str) -> int:
    """Of `rgb(31, 35, 40)`."""
    return sum(map(int, colour[4:-1].split(",")))


def test_the_interactive_figures_fit_a_narrow_window(page: Page, widest: Path) -> None:
    page.set_viewport_size({"width": NARROW, "height": 1000})
    page.goto(widest.with_name("figures.html").as_uri())
    page.locator(".bk-Figure").first.wait_for()
    assert page.locator(".bk-Figure").evaluate_all(RIGHT) <= NARROW
