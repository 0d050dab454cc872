"""Directories as content: their digest, and a cache addressed by it that the processes of one machine share."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.machine import locked

MLMODEL, CARD = "MLmodel", "README.md"
NO_CONTENT = {MLMODEL, CARD}  # beside the files, and rewritten: one has a time in it, the other the scores of the day


class DamagedError(RuntimeError):
    """Files whose digest is not the one they were logged with."""


@dataclass(frozen=True)
class Content:
    """What a store must still list for a result to be there: enough to notice a missing or cut file unread."""

    sha256: str
    num_files: int
    num_bytes: int

    def to_text(self) -> str:
        """For a tag; `from_text` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Content":
        """The content that `to_text` wrote."""
        return cls(**json.loads(text))


def content_files(directory: Path) -> list[Path]:
    """The files of a result in the order of their digest."""
    beside = {directory / name for name in NO_CONTENT}
    files = (path for path in directory.rglob("*") if path.is_file() and path not in beside)
    return sorted(files, key=lambda path: path.relative_to(directory).as_posix())


def directory_digest(directory: Path) -> str:
    """SHA-256 over the sorted relative names and the bytes, each with its length so that no two trees collide.

    `NO_CONTENT` is left out: what is downloaded then has the digest of what was uploaded.
    """
    digest = hashlib.sha256()
    for path in content_files(directory):
        name = path.relative_to(directory).as_posix().encode()
        digest.update(b"%d:%b%d:" % (len(name), name, path.stat().st_size))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def measure(directory: Path) -> Content:
    """The content of a local directory."""
    files = content_files(directory)
    return Content(directory_digest(directory), len(files), sum(path.stat().st_size for path in files))


def cached_directory(cache_dir: Path, sha256: str, download: Callable[[Path], Path]) -> Path:
    """`cache_dir/<sha256>`, filled by `download(scratch)` unless it is there and undamaged.

    A directory appears whole or not at all: it is filled beside its place and renamed.

    Raises:
        DamagedError: if what was downloaded has another digest.
    """
    entry = cache_dir / sha256
    if entry.is_dir() and directory_digest(entry) == sha256:
        return entry
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetch-") as scratch:
        fetched = download(Path(scratch, "files"))
        if (found := directory_digest(fetched)) != sha256:
            raise DamagedError(f"its files have the digest {found[:12]}…, not {sha256[:12]}…")
        _replace(entry, fetched)
    return entry


def _replace(entry: Path, fetched: Path) -> None:
    with locked(entry.with_name(".lock")):
        if entry.is_dir():
            if directory_digest(entry) == entry.name:
                return  # another process fetched the same bytes meanwhile
            shutil.rmtree(entry)
        fetched.rename(entry)
