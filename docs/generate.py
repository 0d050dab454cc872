"""Write the generated parts of the documentation: no table of results and no map of the code is kept by hand.

python docs/generate.py
"""

import ast
import csv
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from flows.__main__ import FUNCTIONS, PAPER, deployed, values_of
from flows.parameters import meaning
from lori.choices.methods import METHODS
from lori.choices.profiles import PROFILES
from lori.evaluation.row_names import RowName

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "docs/scale-model-report/claims.csv"
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


def verdicts() -> str:
    """A row a claim: its verdict, and a sentence with each difference that the verdict rests on."""
    claims: dict[tuple[str, str], list[str]] = {}
    for row in csv.DictReader(CLAIMS.read_text().splitlines()):
        if row["verdict"]:
            claims.setdefault((row["claim"], row["verdict"]), []).append(_sentence(row))
    return table(("The paper's claim", "Verdict", "Measured"), [(*of, " ".join(said)) for of, said in claims.items()])


def _sentence(row: Mapping[str, str]) -> str:
    low, high = float(row["difference_low"]), float(row["difference_high"])
    compared = RowName.parse(row["pair"]).in_words
    return f"{compared}: {float(row['difference']):+.1f} [{low:+.1f}, {high:+.1f}]."


def example() -> str:
    """The library's example, which a test runs."""
    return f"```python\n{(ROOT / 'docs/example.py').read_text()}```\n"


def folders() -> str:
    """Each package with the first sentence of its docstring, and its modules with theirs."""
    tops = ("flows", "tasks", "lori")
    packages = [path.parent for top in tops for path in sorted((ROOT / top).rglob("__init__.py"))]
    parts = []
    for package in packages:
        modules = [path for path in sorted(package.glob("*.py")) if path.name != "__init__.py"]
        rows = [(f"[{path.name}](../{path.relative_to(ROOT)})", _says(path)) for path in modules]
        head = f"### {package.relative_to(ROOT)}/\n\n{_says(package / '__init__.py')}"
        parts.append(f"{head}\n\n{table(('module', 'is about'), rows)}" if rows else f"{head}\n")
    return "\n".join(parts)


def _says(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0]


def flows() -> str:
    """The flows with their addresses and commands."""
    rows = [
        (f"`{_address(name, row)}`", f"`python -m flows {name}`", row["description"])
        for name, row in deployed().items()
    ]
    return table(("deployment", "in a terminal", "computes"), rows)


def _address(name: str, row: Mapping[str, Any]) -> str:
    flow = "lori" if row["name"] == "full-paper" else name
    return f"{flow}/{row['name']}"


def parameters() -> str:
    """The parameters of all flows: which flows take them, which values, and what they mean."""
    takers: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for name in deployed():
        for parameter in inspect.signature(pkgutil.resolve_name(FUNCTIONS.get(name, PAPER))).parameters.values():
            takers.setdefault(parameter.name, []).append(name)
            found.setdefault(parameter.name, parameter.annotation)
    rows = [(f"`{name}`", _taken_by(takers[name]), _values(found[name]), meaning(found[name])) for name in found]
    return table(("parameter", "of", "values", "meaning"), rows)


def _taken_by(names: Sequence[str]) -> str:
    studies = {name for name in deployed() if name not in FUNCTIONS}
    left = [name for name in names if name not in studies]
    paper = ["the paper's flows"] if studies <= set(names) else []
    return "all" if len(names) == len(deployed()) else ", ".join(paper + left)


def _values(annotation: Any) -> str:
    """In words; the methods are too many to list."""
    return values_of(annotation).replace(" | ".join(METHODS), "method").replace("|", "\\|")


def profiles() -> str:
    """A row a field, a column a profile."""
    names = [*PROFILES]
    rows = []
    for each in fields(PROFILES["scale"]):
        values = [getattr(PROFILES[name], each.name) for name in names]
        if each.name != "name":
            rows.append((f"`{each.name}`", *map(_value, values)))
    return table(("", *names), rows)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return getattr(value, "name", "" if value is None else str(value))


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
    return table(columns, cells).rstrip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *rows])


PARTS = {
    "README.md": {"verdicts": verdicts, "example": example},
    "docs/findings.md": {"verdicts": verdicts},
    "docs/studies.md": {"flows": flows, "parameters": parameters, "profiles": profiles},
    "docs/architecture.md": {"folders": folders},
    "benchmarks/README.md": {"results": benchmark_tables},
}


def filled(text: str, parts: Mapping[str, Any]) -> str:
    """`text` with what each part gives between `<!-- part -->` and `<!-- /part -->`."""
    for mark, part in parts.items():
        place = re.compile(rf"(?<=<!-- {mark} -->\n).*(?=<!-- /{mark} -->)", re.DOTALL)
        text = place.sub(lambda _, part=part: part(), text)
    return text


if __name__ == "__main__":
    for name, parts in PARTS.items():
        document = ROOT / name
        document.write_text(filled(document.read_text(), parts))
