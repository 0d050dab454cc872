"""Run generated functions against unit tests: an allow-list of syntax first, then a limited child process.

What it protects from: programs that never end, eat memory, crash the interpreter, or claim to have passed. They may
use arithmetic, comparisons, lists, comprehensions, `if`, `for` and a few builtins; anything else (imports, attributes,
`while`, powers, strings, exceptions) fails before it runs. The child has no environment, no `site`, and limits on CPU
time, memory, open files and processes; a program that kills the child fails alone, and the rest goes on in a new one.

What it does not protect from: a flaw in CPython that this small language can reach. The child is no container: it
runs as the same user, and files and network are out of reach only because no allowed syntax leads there. Models that
write real Python need a real sandbox, and their programs would mostly be refused by this allow-list.
"""

import ast
import json
import math
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SOURCE_CHARACTERS = 4000
MAX_CONSTANT = 10**6
PROGRAMS_PER_CHILD = 500
CPU_SECONDS = 0.5  # for one program with all its tests; processor time, so that a busy machine changes no score
STUCK_CPU_SECONDS = 2  # inside one builtin call, where Python handles no signal: then the child is killed
SILENT_WALL_SECONDS = 30.0  # the last resort of the parent, and what a child may need to start
MEMORY_BYTES = 512 * 2**20
BUILTINS = {
    function.__name__: function
    for function in (abs, all, any, bool, divmod, enumerate, filter, float, int, len, list, map, max, min, range,
                     reversed, round, set, sorted, sum, tuple, zip)
}  # fmt: skip
SYNTAX = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.If, ast.For,
    ast.Break, ast.Continue, ast.Pass, ast.Expr, ast.Call, ast.Name, ast.Load, ast.Store, ast.Constant, ast.Lambda,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not,
    ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    ast.IfExp, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Subscript, ast.Slice, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.keyword,
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Source that defines `entry_point`, a function of one argument; tests are [argument, expected result]."""

    source: str
    entry_point: str
    tests: list[list[Any]]


class OutOfTimeError(BaseException):
    """Raised inside a program that has used up its processor time."""


def refusal_reason(source: str) -> str | None:
    """Why `source` may not run, or None if it may."""
    if len(source) > MAX_SOURCE_CHARACTERS:
        return f"longer than {MAX_SOURCE_CHARACTERS} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "str object is not callable": the program's own affair
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"does not parse: {error}"
    if not all(isinstance(statement, ast.FunctionDef) for statement in tree.body):
        return "has statements outside of functions"
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    reasons = (_node_reason(node, is_docstring=id(node) in docstrings) for node in ast.walk(tree))
    return next((reason for reason in reasons if reason), None)


def _node_reason(node: ast.AST, *, is_docstring: bool) -> str | None:
    if not isinstance(node, SYNTAX):
        return f"uses {type(node).__name__}"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return "uses a decorator"
    name = getattr(node, "id", None) or getattr(node, "name", None) or getattr(node, "arg", None) or ""
    if name.startswith("_"):
        return f"uses the name {name}"
    if isinstance(node, ast.Constant) and not is_docstring:
        return _constant_reason(node.value)
    return None


def _constant_reason(value: object) -> str | None:
    """Strings would need methods to be of use, and `%` on them can ask for any amount of memory."""
    if value is not None and not isinstance(value, bool | int | float):
        return f"uses a {type(value).__name__} constant"
    return "uses a huge constant" if value is not None and abs(value) > MAX_CONSTANT else None


def run_programs(programs: Sequence[Program]) -> list[bool]:
    """Whether each program passes all of its tests. Programs that are alike run once.

    Raises:
        RuntimeError: if a child process cannot be started at all.
    """
    keys = [json.dumps([program.source, program.entry_point, program.tests]) for program in programs]
    allowed = {key: program for key, program in zip(keys, programs, strict=True) if _may_run(program.source)}
    waiting = list(allowed)
    passed: set[str] = set()
    while waiting:
        batch = waiting[:PROGRAMS_PER_CHILD]
        verdicts = _run_batch(batch)
        passed.update(key for key, verdict in zip(batch, verdicts, strict=False) if verdict)
        # A batch that stops early was stopped by the program after its last verdict: that one fails, alone.
        waiting = waiting[min(len(verdicts) + 1, len(batch)) :]
    return [key in passed for key in keys]


def _may_run(source: str) -> bool:
    return refusal_reason(source) is None


def _run_batch(batch: Sequence[str]) -> list[bool]:
    """The verdicts of a child in order; fewer than programs if it died or fell silent."""
    secret = secrets.token_hex(16)  # a program that ends the child, or prints, cannot claim to have passed
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", __file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    assert child.stdin
    assert child.stdout
    try:
        child.stdin.write("\n".join([secret, *batch]).encode())
        child.stdin.close()
        lines = _lines(child.stdout.fileno())
        if next(lines, None) != f"{secret} ready":
            raise RuntimeError(f"The child process that runs generated programs did not start ({sys.executable}).")
        verdicts = {f"{secret} passed": True, f"{secret} failed": False}
        return [verdicts[line] for line in lines if line in verdicts]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _lines(descriptor: int) -> Iterator[str]:
    """Whole lines as they come; ends when the writer is gone or says nothing for `SILENT_WALL_SECONDS`."""
    rest = b""
    while select.select([descriptor], [], [], SILENT_WALL_SECONDS)[0]:
        received = os.read(descriptor, 65536)
        if not received:
            return
        *whole, rest = (rest + received).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def _limit_this_process() -> None:
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # No new file or socket: every descriptor below the limit is already in use.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    signal.signal(signal.SIGVTALRM, _out_of_time)


def _out_of_time(_signal: int, _frame: object) -> None:
    raise OutOfTimeError


def _allow_more_processor_time() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CPU)  # a batch system may have set one
    until = math.ceil(time.process_time()) + STUCK_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


def _passes(source: str, entry_point: str, tests: list[list[Any]]) -> bool:
    """In the child: whether the program gives every expected result within its time."""
    _allow_more_processor_time()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        namespace: dict[str, Any] = {"__builtins__": BUILTINS}
        exec(compile(source, "<generated>", "exec"), namespace)
        return all(bool(namespace[entry_point](argument) == expected) for argument, expected in tests)
    except (Exception, OutOfTimeError):  # whatever goes wrong in a generated program is its failure, not ours
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _serve() -> None:
    """The child: read a secret and the programs, answer one line for each."""
    secret, *batch = sys.stdin.read().split("\n")
    _limit_this_process()
    print(secret, "ready", flush=True)
    for line in batch:
        print(secret, "passed" if _passes(*json.loads(line)) else "failed", flush=True)


if __name__ == "__main__":
    _serve()
