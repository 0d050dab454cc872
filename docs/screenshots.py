"""Pictures of MLflow's pages, of what is in the store now, into docs/images.

MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python docs/screenshots.py     # beside `make serve`, after a study
"""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.browser import (  # noqa: E402 after the path to it
    browser,
    open_charts,
    open_page,
    open_table,
    save_screenshot,
)
from tasks import tracking  # noqa: E402
from tasks.machine import local_runtime  # noqa: E402

IMAGES = ROOT / "docs" / "images"
# By file: the view, and how it is looked at
PICTURES = {
    "single-task": ("01 Single-task", open_charts),
    "merging": ("02 Merging", open_table),
    "curves": ("05 Curves", open_charts),
}
NUM_COLOURS = 256  # of a page: what a palette holds


def main() -> None:
    """Each picture, and that of the newest report."""
    IMAGES.mkdir(exist_ok=True)
    links = tracking.view_links(local_runtime())
    with browser() as page:
        for name, (view, look_at) in PICTURES.items():
            look_at(page, links[view])
            save_screenshot(page, IMAGES / f"{name}.png")
        if len(sys.argv) > 1:  # the link of a report, as a study prints it
            open_page(page, sys.argv[1])
            page.frame_locator("iframe").locator("img").first.wait_for()
            save_screenshot(page, IMAGES / "report.png")
    for path in IMAGES.glob("*.png"):
        Image.open(path).convert("RGB").quantize(NUM_COLOURS).save(path, optimize=True)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
