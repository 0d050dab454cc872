"""How far a job is: JSON lines to whoever started this process, or a bar where a person looks on."""

import json
import os
import sys

from tqdm import tqdm

PROGRESS_FD = "LORI_PROGRESS_FD"  # an open pipe, in the environment of a process that was started for one job
_BARS: dict[str, tqdm] = {}


def report(what: str, done: int, total: int, **values: float) -> None:
    """`done` of `total` steps of `what`, with numbers to show beside them, such as `loss`."""
    if PROGRESS_FD in os.environ:
        line = json.dumps({"what": what, "done": done, "total": total, **values}) + "\n"
        os.write(int(os.environ[PROGRESS_FD]), line.encode())
    elif sys.stderr.isatty():
        _show(what, done, total, values)


def _show(what: str, done: int, total: int, values: dict[str, float]) -> None:
    bar = _BARS.setdefault(what, tqdm(desc=what, total=total, leave=False))
    bar.set_postfix(values, refresh=False)
    bar.update(done - bar.n)
    if done >= total:
        bar.close()
        del _BARS[what]
