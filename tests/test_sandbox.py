"""Generated programs are judged by their tests, and none of them can do harm or cheat."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lori import sandbox
from lori.sandbox import Program, refusal_reason, run_programs

DOUBLE_TESTS = [[1, 2], [5, 10], [-3, -6]]


def double(body: str) -> Program:
    return Program(f"def solve(x):\n    {body}", "solve", DOUBLE_TESTS)


RIGHT = double("return x * 2")


def test_a_program_passes_if_all_its_tests_do():
    almost = double("return x * 2 if x < 5 else 0")
    assert run_programs([RIGHT, double("return x + x"), almost, double("return x")]) == [True, True, False, False]


def test_lists_comprehensions_and_builtins_run():
    source = "def run(xs):\n    y = sum([v for v in xs if v % 2 == 0])\n    return sorted(xs)[::-1] + [y]"
    assert run_programs([Program(source, "run", [[[1, 4, 2], [4, 2, 1, 6]]])]) == [True]


def test_a_limit_that_was_set_outside_of_us_fails_no_right_program():
    limits = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)); "
    run = f"from lori.sandbox import *; print(run_programs([{RIGHT!r}]))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", limits + run], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[True]"


def test_no_programs_give_no_verdicts():
    assert run_programs([]) == []


@pytest.mark.parametrize(
    "body",
    [
        "import os\n    return x * 2",
        "return __import__('os').system('true')",
        "return ().__class__.__base__.__subclasses__()",
        "return (x).real * 2",
        "while True: pass",
        "return 9 ** 9 ** 9",
        "return 1 << 99999999999",
        "return '%1000000000d' % x",
        "return f'{x:1000000000}'",
        "return [0] * 99999999999",
        "try:\n        return 1\n    except:\n        return 2",
        "yield x",
        "global y\n    return x * 2",
        "_y = x\n    return _y * 2",
        "class A: pass",
        "return x * 2 +",
        "return (" * 90 + "x",
        "return x" + " + x" * 5000,
        "return \0 x",
        "return 1j * x",
    ],
)
def test_syntax_outside_of_the_allow_list_fails_before_it_runs(body):
    assert refusal_reason(double(body).source) is not None
    assert run_programs([double(body), RIGHT]) == [False, True]


def test_code_outside_of_functions_and_decorators_are_refused():
    assert refusal_reason("x = 1") == "has statements outside of functions"
    assert refusal_reason("@print\ndef solve(x):\n    return x") == "uses a decorator"
    assert refusal_reason("def solve(x=open):\n    return x(3)") is None  # and `open` is no builtin of the child:
    assert run_programs([Program("def solve(x=open):\n    return 2", "solve", [[1, 2]])]) == [False]


def test_endless_work_fails_alone_and_the_rest_goes_on():
    endless = [
        double("for a in range(1000000):\n        for b in range(1000000):\n            x = a\n    return x"),
        double("return solve(x)"),  # recursion without end
        double("return sum(range(x * 0 + 999999)) + sum(map(lambda v: sum(range(999999)), range(999999)))"),
        double("return max(map(lambda v: v, range(1000000 * 1000000)))"),
        double("return list(range(1000000 * 1000000))"),
        double("for a in range(99):\n        x = (x + 2) * (x + 3)\n    return x"),
    ]
    mixed = [program for hostile in endless for program in (hostile, RIGHT)]
    assert run_programs([RIGHT, *mixed]) == [True] + [False, True] * len(endless)


def test_a_program_that_kills_its_child_fails_alone(monkeypatch):
    children: list[int] = []
    run_batch = sandbox._run_batch
    monkeypatch.setattr(sandbox, "_run_batch", lambda batch: children.append(len(batch)) or run_batch(batch))
    # One call that never comes back to Python: the processor limit ends the child with a signal.
    killer = double("return sum(range(1000000 * 1000000 * 1000000))")
    others = [double(f"return x * 2 + {n} - {n}") for n in range(5)]
    assert run_programs([*others[:2], killer, *others[2:]]) == [True, True, False, True, True, True]
    assert children == [6, 3]  # the second child goes on behind the killer


def test_exit_codes_and_printed_claims_count_for_nothing(tmp_path):
    """The parent believes a line with its secret; a child that says "passed" without it has said nothing."""
    liar = tmp_path / "liar.py"
    liar.write_text("import sys\nsecret = sys.stdin.readline().strip()\nprint(secret, 'ready')\nprint('passed')\n")
    original = sandbox.__file__
    try:
        sandbox.__file__ = str(liar)
        assert run_programs([RIGHT]) == [False]
        liar.write_text("raise SystemExit(0)")
        with pytest.raises(RuntimeError, match="did not start"):
            run_programs([RIGHT])
    finally:
        sandbox.__file__ = original


def test_the_child_can_open_no_file_and_start_no_process():
    code = (
        f"import runpy, subprocess; child = runpy.run_path({sandbox.__file__!r}, run_name='child')\n"
        "child['_limit_this_process']()\n"
        "for attempt in (lambda: open('/etc/hostname'), lambda: subprocess.run(['true']), lambda: bytearray(2**30)):\n"
        "    try:\n        attempt()\n        print('done')\n"
        "    except (OSError, MemoryError) as error:\n        print(type(error).__name__)\n"
    )
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["OSError", "OSError", "MemoryError"]


def test_thousands_of_programs_take_seconds_and_equal_ones_run_once(monkeypatch):
    batches: list[int] = []
    run_batch = sandbox._run_batch
    monkeypatch.setattr(sandbox, "_run_batch", lambda batch: batches.append(len(batch)) or run_batch(batch))
    programs = [double(f"return x + x + {n % 600} - {n % 600}") for n in range(3000)]
    assert all(run_programs(programs))
    assert sum(batches) == 600


def test_verdicts_come_in_the_order_of_the_programs():
    programs = [double(f"return x * {n}") for n in (1, 2, 3, 2)]
    assert run_programs(programs) == [False, True, False, True]
    assert json.loads(json.dumps(run_programs(programs)))
