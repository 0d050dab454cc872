"""Copy a report into the documentation: its text, pictures and tables, without what is large or has no rows.

python docs/copy_report.py REPORT            # REPORT: the page that the flow printed; into docs/scale-model-report
python docs/copy_report.py REPORT ablations  # into a folder there, without the interactive page, which is large
"""

import re
import shutil
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "scale-model-report"
PAGE, LEFT_OUT = "figures.html", ("cells.csv", "index.html", "figures.sha256")


def copy_report(report: Path, folder: str = "") -> None:
    """Replace what an earlier copy left in the folder."""
    files, target = sorted(report.iterdir()), TARGET / folder  # read first: of a wrong name nothing is lost
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if old.is_file():
            old.unlink()
    for path in files:
        is_empty = path.suffix == ".csv" and path.read_text().count("\n") < 2
        if path.name not in LEFT_OUT and not is_empty and not (folder and path.name == PAGE):
            shutil.copy(path, target)
    if folder:
        readme = target / "README.md"
        readme.write_text(re.sub(rf"^.*\[{PAGE}\].*\n\n", "", readme.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    copy_report(Path(sys.argv[1]).parent, *sys.argv[2:])
