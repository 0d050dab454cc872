"""Programs in the sandbox are judged by their tests; none outlives its limits or talks its way out."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from helpers.sandboxed import PASSED, RIGHT, SHORT, reasons
from lori.evaluation import humaneval_sandbox as sandbox
from lori.evaluation.humaneval_sandbox import Limits, Verdict, check_bubblewrap, run_python
from tasks.machine import ROOT

DATA_DIR = Path(os.environ.get("LORI_DATA", ROOT.parent / "shared" / "data"))
SIMILAR = [  # in HumanEval's format, where its file is not at hand
    {"prompt": f"def {name}(x):\n", "canonical_solution": body, "test": f"def check(candidate):\n    {test}\n",
     "entry_point": name}
    for name, body, test in (
        ("double", "    return 2 * x\n", "assert candidate(4) == 8 and candidate(-1) == -2"),
        ("largest", "    return max(x)\n", "assert candidate([1, 7, 3]) == 7 and candidate([-2]) == -2"),
        ("digest", "    import hashlib\n    return hashlib.md5(x).hexdigest()\n",
         "assert candidate(b'') == 'd41d8cd98f00b204e9800998ecf8427e'"),
    )
]  # fmt: skip


def humaneval() -> list[dict[str, str]]:
    path = DATA_DIR / "humaneval" / "HumanEval.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else SIMILAR


def program_of(problem: dict[str, str], completion: str) -> str:
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def test_this_machine_can_run_the_sandbox():
    check_bubblewrap()


def test_the_canonical_solutions_pass_and_empty_ones_fail():
    problems = humaneval()
    right = [program_of(problem, problem["canonical_solution"]) for problem in problems]
    wrong = [program_of(problem, "    return None\n") for problem in problems[:3]]
    verdicts = run_python(right + wrong)
    assert verdicts[: len(right)] == [PASSED] * len(right)
    assert [verdict.passed for verdict in verdicts[len(right) :]] == [False] * 3


def test_a_failure_says_which_exception_it_was():
    programs = ("assert 1 == 2", "1 / 0", "def f(:", "import torch", "input()", "x = 'a\ud800'", "raise SystemExit(0)")
    assert reasons("import ctypes; ctypes.string_at(0)") == ["killed: SIGSEGV"]
    assert reasons(*programs) == [
        f"failed: {name}"
        for name in ("AssertionError", "ZeroDivisionError", "SyntaxError", "ModuleNotFoundError", "EOFError",
                     "UnicodeDecodeError", "SystemExit")
    ]  # fmt: skip


def test_verdicts_come_in_the_order_of_the_programs_and_equal_ones_run_once(monkeypatch):
    started: list[str] = []
    judge = sandbox._judge
    monkeypatch.setattr(sandbox, "_judge", lambda text, **rest: started.append(text) or judge(text, **rest))
    assert [verdict.passed for verdict in run_python(["1/0", RIGHT, "1/0", "", RIGHT])] == [False, True] * 2 + [True]
    assert sorted(started) == sorted(["1/0", RIGHT, ""])
    assert run_python([]) == []


def test_sets_have_the_same_order_each_time():
    fixed = subprocess.run(
        [sys.executable, "-c", "print(hash('lori'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True
    )
    assert run_python([f"assert hash('lori') == {fixed.stdout.decode()}"]) == [PASSED]


def test_ending_before_the_tests_is_no_pass():
    endings = (
        "exit(0)", "quit()", "import sys; sys.exit(0)", "import os; os._exit(0)", "import os; os._exit(255)",
        "raise SystemExit", "raise KeyboardInterrupt", "print('passed'); import os; os._exit(0)",
        "import os; os.write(1, b'ready\\npassed'); os._exit(0)",
        "import os; [os.write(3, b'passed'), os._exit(0)]",
        "import os; os.write(3, bytes(10**6)); os._exit(0)",
        "import os, sys; os.execv(sys.executable, ['python', '-c', 'pass'])",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit(0)",
        "import builtins, os; os._exit = os.write = builtins.exec = print; builtins.BaseException = (); 1 / 0",
        "import os; os._exit = print; M = type('M', (type,), {'__name__': property(lambda _: '')})\n"
        "raise M('E', (Exception,), {})",
        "import sys, os; sys.excepthook = lambda *_: os._exit(0); 1 / 0",
    )  # fmt: skip
    reasons(*(f"{ending}\nassert False" for ending in endings))


# Looks for 32 hexadecimal digits in every object that `gc`, the modules and the frames lead to, and in every file that
# is open; `planted` is there for it to find.
SEARCH = """
import gc, os, re, sys
planted = b"0123456789abcdef" * 2
def search():
    frames, frame = [], sys._getframe()
    while frame:
        frames += [dict(frame.f_locals), frame.f_globals, frame.f_code, frame]
        frame = frame.f_back
    stack, seen, found = [gc.get_objects(), sys.modules, frames], set(), set()
    while stack:
        item = stack.pop()
        if id(item) not in seen:
            seen.add(id(item))
            stack += gc.get_referents(item)
            if issubclass(type(item), (bytes, str)):  # `isinstance` asks the item itself, and some warn
                found.update(re.findall("[0-9a-f]{32}", item if isinstance(item, str) else item.decode("latin-1")))
    for descriptor in range(64):
        try:
            found.update(re.findall("[0-9a-f]{32}", os.read(descriptor, 10**6).decode("latin-1")))
        except OSError:
            pass
    found = {digits for digits in found if len(set(digits)) > 6}  # the standard library has some "111..."
    assert planted.decode() in found
    return found - {planted.decode()}
"""
FOUND = "type('Found' if search() else 'Nothing', (BaseException,), {})"


def test_the_nonce_is_in_no_object_frame_or_file_before_the_end():
    while_it_runs = f"{SEARCH}\nraise {FOUND}"
    while_it_is_named = (
        f"{SEARCH}\nclass Meta(type):\n    __name__ = property(lambda self: {FOUND}.__name__)\n"
        "class Lie(BaseException, metaclass=Meta):\n    pass\nraise Lie"
    )
    assert reasons(while_it_runs, while_it_is_named, limits=Limits(10, 60)) == ["failed: Nothing"] * 2


def test_the_search_finds_a_nonce_that_is_kept_in_a_frame():
    """So that the test above can fail."""

    def holder() -> str:
        nonce = b"fedcba98" * 4
        space: dict[str, str] = {}
        exec(f"{SEARCH.replace('range(64)', '()')}\nresult = ','.join(search())", space)
        return space["result"] if nonce else ""

    assert "fedcba98" * 4 in holder().split(",")


def test_endless_work_talk_and_sleep_end_within_the_limits():
    stubborn = (
        "import ctypes, signal, time\n"
        "for n in set(range(1, 65)) - {9, 19, 32, 33}:\n    signal.signal(n, signal.SIG_IGN)\n"
        "ctypes.CDLL(None).prctl(1, 0)\n"  # not to die with its parent
    )
    busy = (
        "while True: pass", "sum(range(10**15))", "while True: print('x' * 10**6)",
        "import os\nwhile True: os.write(2, b'x' * 10**6)", f"{stubborn}while True: pass",
    )  # fmt: skip
    assert reasons(*busy) == ["timed out"] * len(busy)
    asleep = run_python(["import time; time.sleep(10**6)", f"{stubborn}time.sleep(10**6)"], Limits(1, 2))
    assert asleep == [Verdict(False, "timed out")] * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reasons("import os\nwhile True: os.write(3, b'x' * 10**6)") == ["wrote where only the sandbox answers"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**5  # in KiB: it has not been read


def test_processor_time_decides_not_the_time_on_the_wall():
    slow = "import time; time.sleep(1.5)"
    assert run_python([slow, RIGHT], SHORT) == [PASSED] * 2  # has slept longer than it may compute
    assert reasons("while True: pass", limits=Limits(1, 10**5)) == ["timed out"]


def test_memory_is_limited():
    bombs = ("x = bytearray(4 * 2**30)", "x = [0]\nwhile True: x = x + x", "import mmap; mmap.mmap(-1, 4 * 2**30)")
    assert reasons(*bombs, limits=Limits(10, 60)) == ["failed: MemoryError"] * 2 + ["failed: OSError"]


def test_files_are_limited_to_a_little_memory():
    big = (
        "written = 0\ntry:\n    with open('/tmp/x', 'wb', 0) as file:\n"
        "        while True: written += file.write(b'x' * 4096)\n"
        f"except OSError as error:\n    assert error.errno == {errno.EFBIG} and 0 < written <= {sandbox.FILE_BYTES}"
    )
    many = (
        "written = 0\ntry:\n    for name in range(1000):\n        with open(f'/tmp/{name}', 'wb', 0) as file:\n"
        "            written += file.write(b'x' * 2**20)\n"
        f"except OSError as error:\n    assert error.errno == {errno.ENOSPC} and 0 < written <= {sandbox.TMP_BYTES}"
        "\nelse:\n    assert False"
    )
    read_only = (
        "import os\nfor place in ('/', '/dev', '/usr', '/usr/lib', os.__file__.rpartition('/')[0]):\n"
        "    try: open(place + '/x', 'w')\n    except OSError: pass\n    else: assert False, place"
    )
    assert run_python([big, many, read_only], SHORT) == [PASSED] * 3
    assert run_python(["import os; assert not os.listdir('/tmp')"]) == [PASSED]  # nothing is left for the next


def test_a_machine_that_forbids_namespaces_says_so():
    """Here, a sandbox that forbids further ones. A program is not blamed for it."""
    forbidding = ["bwrap", "--unshare-user", "--disable-userns", "--uid", "1000", "--dev-bind", "/", "/"]
    for call in ("check_bubblewrap()", "run_python(['pass'])"):
        code = f"from lori.evaluation.humaneval_sandbox import *; {call}"
        failed = subprocess.run(
            [*forbidding, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1
        assert "SandboxError: The sandbox did not start: bwrap: " in failed.stderr
        assert "user namespaces" in failed.stderr
