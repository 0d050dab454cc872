"""Adapters on the hub: checked before any time is spent, private until somebody makes them public."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from tasks import tracking
from tasks.publish.catalogue import card_of
from tasks.results import Handle, Runtime

NO_TOKEN = "push_to={namespace} needs a token that may write there: set HF_TOKEN, or leave push_to out."


def check_push(namespace: str) -> None:
    """Whether this process may push to that user or organisation of the hub.

    Raises:
        ValueError: without a token; if the hub refuses it; if it can only read, or is nobody's of `namespace`.
        RuntimeError: if the hub can't be asked.
    """
    if get_token() is None:
        raise ValueError(NO_TOKEN.format(namespace=namespace))
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        raise ValueError(f"The hub refuses HF_TOKEN, and push_to={namespace} needs it: {error}") from error
    except OSError as error:
        raise RuntimeError(f"push_to={namespace}: the hub can't be asked ({error}).") from error
    names = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if namespace not in names:
        raise ValueError(f"push_to={namespace}: HF_TOKEN is of {', '.join(names)}. Name one of them.")
    if not _may_write(user.get("auth", {}).get("accessToken", {}), namespace):
        raise ValueError(NO_TOKEN.format(namespace=namespace) + " This one can only read.")


def _may_write(token: Mapping[str, Any], namespace: str) -> bool:
    """What the hub says of a token: `read`, `write`, or `fineGrained` with what it may do to whose repositories."""
    if token.get("role") != "fineGrained":
        return token.get("role") != "read"
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return any(scope["entity"].get("name") == namespace and "repo.write" in scope["permissions"] for scope in scopes)


def push(adapter: Handle, namespace: str, runtime: Runtime) -> str | None:
    """The adapter's files and card as `<namespace>/<registered name>-<alias>`; the page of that repository.

    None for what is not registered, `base`. Files that are there already make no new commit.
    """
    address = tracking.address_of(runtime, adapter.uri)
    if address is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        ignored = shutil.ignore_patterns("MLmodel", tracking.CARD)
        directory = shutil.copytree(tracking.fetch(runtime, adapter), Path(scratch, "adapter"), ignore=ignored)
        (directory / tracking.CARD).write_text(card_of(adapter, address, runtime))
        name = re.sub(r"[^\w.-]+|-{2,}", "-", address.removeprefix("models:/"))  # as the hub takes them
        url = HfApi().create_repo(f"{namespace}/{name}", private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=url.repo_id, folder_path=directory, commit_message=adapter.key)
    return str(url)
