"""How far a job is: JSON lines for whoever started this process, or a bar where a person looks on; what is logged."""

import json
import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm

PROGRESS_FILE = "LORI_PROGRESS_FILE"  # in the environment of processes that were started for one job
_BARS: dict[str, tqdm] = {}


def report(what: str, done: int, total: int, **values: float) -> None:
    """`done` of `total` steps of `what`, with numbers to show beside them, such as `loss`."""
    if PROGRESS_FILE in os.environ:
        with Path(os.environ[PROGRESS_FILE]).open("a") as file:  # no pipe: nobody waits for a reader that is slow
            file.write(json.dumps({"what": what, "done": done, "total": total, **values}) + "\n")
    elif sys.stderr.isatty():
        _show(what, done, total, values)


def log_at_info() -> None:
    """Let `lori` and `tasks` log what they do, wherever this process sends its log."""
    for name in ("lori", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


def _show(what: str, done: int, total: int, values: dict[str, float]) -> None:
    bar = _BARS.setdefault(what, tqdm(desc=what, total=total, leave=False))
    bar.set_postfix(values, refresh=False)
    bar.update(done - bar.n)
    if done >= total:
        bar.close()
        del _BARS[what]
