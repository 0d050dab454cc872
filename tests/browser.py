"""MLflow's pages in a headless Chromium, as somebody sees them who follows a link."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from waiting import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZE = {"width": 2400, "height": 1000}  # the grid draws only the columns that are in sight
# A first visit opens a panel for talks with a language model over a third of the page
NO_PANEL = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


@contextmanager
def browser() -> Iterator[Page]:
    """A page that has been nowhere."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE)
        page.set_default_timeout(1000 * PATIENCE)
        page.add_init_script(NO_PANEL)
        yield page
        chromium.close()


def open_page(page: Page, link: str) -> None:
    """Follow a link as from outside: links of one page differ behind their # alone, which loads nothing."""
    page.goto("about:blank")
    page.goto(link)


def open_table(page: Page, link: str) -> None:
    """A view as a table, with its rows."""
    open_page(page, link.replace("=CHART", "=TABLE"))
    page.wait_for_selector("[role=row][row-index='0'] a")


def open_charts(page: Page, link: str) -> None:
    """A view as charts, drawn."""
    open_page(page, link.replace("=TABLE", "=CHART"))
    page.wait_for_selector(".js-plotly-plot .main-svg")


def columns(page: Page) -> list[str]:
    """The titles of the columns from left to right; the grid's own order in the page is another."""
    headers = page.locator("[role=columnheader][aria-colindex]").all()
    found = {int(header.get_attribute("aria-colindex") or 0): header.inner_text().strip() for header in headers}
    return [found[index] for index in sorted(found) if found[index]]


def rows(page: Page) -> list[str]:
    """The names of the runs from top to bottom."""
    lines = page.locator("[role=row][row-index]").filter(has=page.locator("a"))
    found = {int(line.get_attribute("row-index") or 0): line.locator("a").first.inner_text() for line in lines.all()}
    return [found[index].strip() for index in sorted(found)]


def chart_texts(page: Page) -> str:
    """What is written over the charts."""
    return "\n".join(page.locator("[data-testid=draggable-chart-cards-grid]").all_inner_texts())


def save_screenshot(page: Page, path: Path, *, width: int = 1500, height: int = 700) -> None:
    """A small picture of the page as it is."""
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(1500)  # charts are drawn again
    page.screenshot(path=path)
