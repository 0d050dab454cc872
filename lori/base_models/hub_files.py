"""A base model's files, in a folder or on the hub: fetched, told apart by their contents, and there or not."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open

HUB = "https://huggingface.co"
SECONDS_TO_ANSWER = 10  # a hub that does not is not there: fetching would try again for a minute
SERVER_ERROR = 500
SMALL_FILES = ["*.json", "*.txt", "*.model"]  # config, tokenizer and the weights' index; none of sub-folders
TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class BaseUnavailable(RuntimeError):
    """A base model can't be fetched: the hub isn't reached, or lets nobody in without a token."""


@lru_cache  # a branch that moves meanwhile is another base model for the next process
def fetch_small_files(source: str, revision: str) -> Path:
    """That revision's snapshot in the hub's cache, a folder called like the commit; without weights, unless cached.

    Raises:
        ValueError: if the hub has no such model or revision.
        BaseUnavailable: if it can't be fetched and isn't cached.
    """
    return fetch(source, revision, SMALL_FILES, skip="*/*")


def fetch(source: str, revision: str, patterns: list[str], *, skip: str | None = None) -> Path:
    """The files of a model's repository that `patterns` name, in the hub's cache; it raises what the above does."""
    chosen: Any = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": skip}
    try:
        HfApi().model_info(source, revision=revision, timeout=SECONDS_TO_ANSWER)
        return Path(snapshot_download(source, **chosen))
    except (OSError, HTTPError) as error:
        # No answer, or the hub's own trouble: what was fetched before will do
        if not isinstance(error, HfHubHTTPError) or error.response.status_code >= SERVER_ERROR:
            with suppress(OSError):
                return Path(snapshot_download(source, **chosen, local_files_only=True))
        raise explained(error, source, revision) from None


def explained(error: Exception, source: str, revision: str) -> Exception:
    """What the hub answered, in a sentence."""
    answer: BaseException | None = error
    while answer and not isinstance(answer, HfHubHTTPError):
        answer = answer.__cause__
    status = answer.response.status_code if answer else None
    code = answer.response.headers.get("X-Error-Code") if answer else None
    if code == "RepoNotFound" or (status == 404 and code is None):
        return ValueError(
            f"There is no model {source!r} on the hub, nor a folder of that name with a config.json: check the name."
            " If it is private, set HF_TOKEN."
        )
    if status == 404:
        return ValueError(f"{source} has no revision {revision!r} on the hub, or lacks a file there ({code}).")
    if status in (401, 403):
        return BaseUnavailable(
            f"{source} is gated, and HF_TOKEN is unset or has no access: ask for it at {HUB}/{source}, or name the"
            " folder of a copy."
        )
    reason = f"status {status}" if answer else str(error.__cause__ or error).strip().splitlines()[0]
    return BaseUnavailable(
        f"{source} is not in the hub's cache and can't be fetched ({reason}): try again online, or name the folder of"
        " a copy."
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers will read, there or not: of a whole file and shards, the whole."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def check_weights(folder: Path, source: str, revision: str | None) -> None:
    """Whether there are weights in safetensors, undamaged; what is on the hub alone is not fetched.

    Raises:
        ValueError: if not.
        BaseUnavailable: if they are neither in the hub's cache nor within reach.
    """
    missing = [path for path in weight_files(folder) if not path.exists()]
    if missing and (revision is None or not _is_on_hub(missing[0].name, source, revision)):
        raise ValueError(
            f"{source} has no {missing[0].name}, and only safetensors are read: convert it with"
            " transformers.AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder), put its tokenizer beside"
            " it, and name that folder."
        )
    for path in set(weight_files(folder)).difference(missing):
        with open_tensors(path, "np"):
            pass


def _is_on_hub(name: str, source: str, revision: str) -> bool:
    try:
        hf_hub_download(source, name, revision=revision, dry_run=True)
    except RemoteEntryNotFoundError:
        return False
    except (OSError, HTTPError) as error:
        raise explained(error, source, revision) from None
    return True


def fingerprint(folder: Path) -> str:
    """12 hex digits of the sha256 of config, tokenizer and weights: not of where they lie.

    Raises:
        ValueError: as `check_weights`.
    """
    check_weights(folder, str(folder), None)
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return digest_of({folder / "config.json", *found, *weight_files(folder)})


def digest_of(paths: Iterable[Path]) -> str:
    """12 hex digits of the sha256 of files, by name and content."""
    return _digest(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)))[:12]


@lru_cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of names and contents. Sizes and times only say when to read them again."""
    paths = [Path(path) for path, _, _ in files]
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = list(pool.map(_sha256, paths))
    named = {path.name: digest for path, digest in zip(paths, digests, strict=True)}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file, open for reading on the CPU. As numpy's (`np`) its header is read without torch.

    Raises:
        ValueError: if it is missing, truncated or not safetensors.
    """
    try:
        file = safe_open(str(path), framework)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist.") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): save or download it again.") from error
    with file:
        yield file
