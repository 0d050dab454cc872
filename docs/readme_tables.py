"""Copy the tables of docs/scale/report.md into the README, so that no number there is typed."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
PLACE = re.compile(r"(?<=<!-- report -->\n).*(?=<!-- /report -->)", re.DOTALL)


def tables() -> str:
    """What the report shows before it says how it was made."""
    report = (DOCS / "scale" / "report.md").read_text()
    body = report.partition("\n## How it was made")[0].partition("\n")[2].strip()
    return "\n" + body.replace("\n## ", "\n### ") + "\n\n"


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: tables(), README.read_text()))
