"""Copy a report into the documentation: its text, pictures and tables, without what is large.

python docs/copy_report.py REPORT            # REPORT: the page that the flow printed; into docs/scale-model-report
python docs/copy_report.py REPORT ablations  # into a folder there, without its largest files
python docs/copy_report.py REPORT sweep --no-pictures
"""

import re
import shutil
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "scale-model-report"
PAGE = "figures.html"  # two megabytes
LEFT_OUT = (PAGE, "cells.csv", "index.html", "figures.sha256", "effort.json")
LEFT_OUT_OF_FOLDERS = ("intervals.csv",)


def copy_report(report: Path, folder: str = "", *, pictures: bool = True) -> None:
    """Replace what an earlier copy left in the folder."""
    files, target = sorted(report.iterdir()), TARGET / folder  # read first: of a wrong name nothing is lost
    left_out = LEFT_OUT + (LEFT_OUT_OF_FOLDERS if folder else ())
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if old.is_file():
            old.unlink()
    for path in files:
        if path.name not in left_out and (pictures or path.suffix != ".png"):
            shutil.copy(path, target)
    gone = [rf"^.*\[{PAGE}\].*\n\n"] + ([] if pictures else [r"^!\[.*\]\(.*\)\\\n.*\n\n"])
    readme = target / "README.md"
    for paragraph in gone:
        readme.write_text(re.sub(paragraph, "", readme.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if word != "--no-pictures"]
    copy_report(Path(names[0]).parent, *names[1:], pictures="--no-pictures" not in sys.argv)
