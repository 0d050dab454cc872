"""Copy what runs printed into the documentation, so that no number there is typed.

python docs/readme_tables.py      # the report's tables into README.md, benchmarks/*.json into benchmarks/README.md
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPORT = "docs/scale-model-report"
SECTIONS = (
    "The paper's claims",
    "One adapter per domain",
    "Adapters of all domains merged into one",
    "Continual learning",
)
BENCHMARKS = {
    "step": "A training step",
    "loop": "The whole loop",
    "generation": "Completions that stop once their score cannot change",
    "files": "At Llama-3-8B's shapes, rank 32, without the model",
    "orchestration": "What orchestration costs beside the work",
    "prefect_server": "Prefect's server on SQLite",
    "tracking": "What MLflow costs",
    "coverage": "How often an interval holds the truth",
    "gpu": "Llama-3-8B's shape on a GPU",
    "gpu_toy": "The GPU benchmark at toy size, on the CPU: the code runs, its figures mean nothing",
}


def tables() -> str:
    """The head of the report and those of its sections that are the paper's."""
    report = (ROOT / REPORT / "README.md").read_text()
    head, *sections = report.split("\n## ")
    chosen = [section for section in sections if section.partition("\n")[0] in SECTIONS]
    body = "\n### ".join([head.partition("\n")[2], *chosen]).strip()
    return "\n" + re.sub(r"\]\((\w+\.(png|html))\)", rf"]({REPORT}/\1)", body) + "\n\n"


def benchmark_tables() -> str:
    """Each benchmark's rows and goals, with where it was measured."""
    sections = []
    for name, title in BENCHMARKS.items():
        path = ROOT / "benchmarks" / f"{name}.json"
        if path.exists():
            sections.append(_section(name, title, json.loads(path.read_text())))
    return "\n" + "\n\n".join(sections) + "\n\n"


def _section(name: str, title: str, found: dict[str, Any]) -> str:
    libraries = ", ".join(f"{library} {found[library]}" for library in ("torch", "transformers", "peft"))
    where = f"{found['date']}, {found['device']}, threads: {found['threads']}; {libraries}."
    command = "gpu --toy" if name == "gpu_toy" else name
    parts = [f"### {title}", f"`python -m benchmarks.{command}`: {where}", markdown(found["rows"])]
    return "\n\n".join(parts + ([markdown(found["goals"])] if "goals" in found else []))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a table."""
    columns = list(rows[0])
    cells = [[f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells])


def fill(document: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- mark -->` and `<!-- /mark -->`."""
    place = re.compile(rf"(?<=<!-- {mark} -->\n).*(?=<!-- /{mark} -->)", re.DOTALL)
    document.write_text(place.sub(lambda _: text, document.read_text()))


if __name__ == "__main__":
    fill(ROOT / "README.md", "report", tables())
    fill(ROOT / "benchmarks" / "README.md", "results", benchmark_tables())
