"""How much adapters interfere, as a table of the report, and module by module as a figure."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lori.config import Handle, Runtime
from tasks import tracking
from tasks.tables import Table, Value

PAIRS = "pairs.json"
INTERFERENCE = """\
Means over seeds. The cosine is of two domains' whole updates ΔW as vectors; 0 is no interference to first order. A's
alignment is the mean squared cosine of the principal angles between their row spaces, and by chance rank / width.
Masks overlap by the entries that both keep, as a multiple of what chance alone would leave to both."""
Pairs = Mapping[str, Sequence[Mapping[str, Any]]]  # by method, those of all its seeds


def read_pairs(handles: Sequence[Handle], runtime: Runtime) -> Pairs:
    """What the steps `interference` found, as `measure_pair` says it, with the two `domains`."""
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for handle in handles:
        found = json.loads((tracking.fetch(runtime, handle) / PAIRS).read_text())
        pairs.setdefault(handle.config["method"], []).extend(found)
    return pairs


def interference_table(pairs: Pairs) -> Table:
    """A row a method and pair of domains."""
    rows: list[dict[str, Value]] = []
    for method, found in pairs.items():
        for domains in dict.fromkeys(" × ".join(pair["domains"]) for pair in found):
            of_domains = [pair for pair in found if " × ".join(pair["domains"]) == domains]
            row: dict[str, Value] = {"method": method, "domains": domains}
            for name, form in (("cosine", "+.4f"), ("alignment", ".4f"), ("chance", ".4f"), ("overlap", ".2f")):
                values = [pair[name] for pair in of_domains if pair[name] is not None]
                row[name] = format(fmean(values), form) if values else None
            rows.append(row)
    columns = {
        "method": "Method",
        "domains": "Domains",
        "cosine": "Cosine of ΔW",
        "alignment": "Alignment of A",
        "chance": "by chance",
        "overlap": "Overlap of masks ÷ chance",
    }
    return Table("Interference between domains", columns, rows)
