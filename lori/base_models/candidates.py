"""Base models that could be next, each at one revision: from a file, and from the hub."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session

from lori.base_models.hub_files import SECONDS_TO_ANSWER, SERVER_ERROR, BaseUnavailable, explained
from lori.base_models.records import BaseModel
from lori.base_models.resolve import BASE_MODELS, HUB_ID, architecture_of, base_model, split_base

COMMIT = re.compile(r"[0-9a-f]{40}")
LISTED: Any = ["sha", "safetensors", "tags"]  # of each model that is listed
MAX_LISTED = 100  # the newest of an author or a search
BILLION = 1e9


@dataclass(frozen=True)
class Entry:
    """A candidate as the file names it: `base_model` as flows take it, and what the hub would say of it."""

    base_model: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class HubSearch:
    """Where on the hub to look: a collection's slug, or text generators of an author and with words in their name."""

    collection: str | None = None
    author: str | None = None
    search: str | None = None


@dataclass(frozen=True)
class Filters:
    """Which candidates will do. `licences` are the hub's names of them; None is any."""

    max_billions: float
    licences: Sequence[str] | None = None


@dataclass(frozen=True)
class Candidate:
    """A base model at one revision. `base_model` is what a flow takes, `found` its record if it is in a folder.

    `identity` is `name@revision`; where it can't be known it is None, and `problem` says why.
    """

    base_model: str
    identity: str | None = None
    num_parameters: int | None = None
    licence: str | None = None
    problem: str | None = None
    found: BaseModel | None = None

    @property
    def base(self) -> BaseModel:
        """Its record. Config and tokenizer of one on the hub are fetched.

        Raises:
            ValueError, BaseUnavailable: as `resolve.base_model`.
        """
        return self.found or base_model(self.base_model)


def read_entries(path: Path) -> list[Entry]:
    """The candidates in a YAML file: a list named `base_models` of names, or of an `Entry`'s fields.

    Raises:
        ValueError: if there is no such file, or something else in it.
    """
    if not path.is_file():
        raise ValueError(f"There is no list of candidates at {path}: correct `source`, or leave it empty.")
    try:
        written = yaml.safe_load(path.read_text())["base_models"]
        items = [item if isinstance(item, dict) else {"base_model": item} for item in written]
        if unquoted := [value for item in items for value in item.values() if not isinstance(value, str)]:
            raise TypeError(f"{unquoted[0]!r} is not a string: quote it")
        return [Entry(**item) for item in items]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        names = ", ".join(field.name for field in fields(Entry))
        raise ValueError(
            f"{path} is not a list of candidates ({error}): under `base_models:`, list names, or entries with {names}."
        ) from error


def find_candidates(entries: Sequence[Entry], where: HubSearch, models_dir: str | None = None) -> list[Candidate]:
    """The candidates of a list and of a search on the hub, each once, in that order.

    What the hub does not tell about one of them is that candidate's `problem`. Where there is no hub, the list's rows
    of `BASE_MODELS`, folders and entries with a commit remain; the search is then a candidate with a problem.

    Raises:
        ValueError: if the collection does not exist.
    """
    unique: dict[str, Candidate] = {}
    for candidate in [*(_found(entry, models_dir) for entry in entries), *_searched(where)]:
        unique.setdefault(candidate.identity or candidate.base_model, candidate)
    return list(unique.values())


def check_candidate(candidate: Candidate, filters: Filters) -> Candidate:
    """The candidate, with its size, if `filters` let it through; the hub's or that of its configuration.

    Raises:
        ValueError, BaseUnavailable: if they don't, or if its configuration can't be read.
    """
    if filters.licences is not None and candidate.licence not in filters.licences:
        has, remedy = candidate.licence, "add it there to include this base"
        if not has:
            has, remedy = "not known", "write it as `licence` in the list of candidates"
        raise ValueError(f"Its licence is {has}, and `licences` allows only {', '.join(filters.licences)}: {remedy}.")
    num_parameters = candidate.num_parameters or architecture_of(candidate.base).num_parameters
    if num_parameters > filters.max_billions * BILLION:
        raise ValueError(
            f"It has {num_parameters / BILLION:.2f} billion parameters, more than the {filters.max_billions:g} of"
            " `max_billions`: raise that to include it."
        )
    return replace(candidate, num_parameters=num_parameters)


def _found(entry: Entry, models_dir: str | None = None) -> Candidate:
    try:
        return _candidate(entry, models_dir)
    except (ValueError, BaseUnavailable) as error:
        return Candidate(entry.base_model, licence=entry.licence, problem=str(error))


def _candidate(entry: Entry, models_dir: str | None) -> Candidate:
    base, folder = split_base(entry.base_model)
    name, _, at = base.partition("@")
    revision, row = at or entry.revision, BASE_MODELS.get(name)
    source = row.source if row else name
    if folder or not HUB_ID.fullmatch(source):
        found = base_model(f"{name}@{revision}" if revision else name, folder or models_dir)
        takes = str(Path(folder, base)) if folder else found.identity
        return Candidate(takes, found.identity, licence=entry.licence, found=found)
    if row and revision not in (None, row.revision):
        raise ValueError(
            f"{name} is a row of BASE_MODELS at {row.revision}: leave its revision out, or name {source}."
        )
    told = _asked(source, row.revision if row else revision)
    return replace(told, licence=entry.licence or told.licence)


def _asked(source: str, revision: str | None) -> Candidate:
    """What the hub says of a model; of one whose commit is given, no more than that if there is no hub."""
    try:
        return _told(HfApi().model_info(source, revision=revision, timeout=SECONDS_TO_ANSWER))
    except (OSError, HTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < SERVER_ERROR:
            raise explained(error, source, revision or "main") from None
        if not revision or not COMMIT.fullmatch(revision):
            raise BaseUnavailable(
                f"Its commit is not known, as the hub does not answer ({_first_line(error)}): add it to the list of"
                " candidates as `revision`, or try again online."
            ) from None
        return _told(ModelInfo(id=source, sha=revision))


def _told(info: ModelInfo) -> Candidate:
    """What the hub says of a model; one that is a row of `BASE_MODELS` goes by the row's name."""
    rows = {(row.source, row.revision): name for name, row in BASE_MODELS.items()}
    base = f"{rows.get((info.id, info.sha), info.id)}@{info.sha}"
    size = info.safetensors.total if info.safetensors else None
    licences = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return Candidate(base, base, size, licences[0] if licences else None)


def _searched(where: HubSearch) -> list[Candidate]:
    if where == HubSearch():
        return []
    try:
        get_session().head(HfApi().endpoint, timeout=SECONDS_TO_ANSWER)  # a search would wait for ever
        return list(_hits(where))
    except (OSError, HTTPError) as error:
        if where.collection and isinstance(error, HfHubHTTPError) and error.response.status_code == 404:
            raise ValueError(
                f"There is no collection {where.collection!r} on the hub: name the end of its address, as in"
                " org/name-0123456789ab."
            ) from None
        about = ", ".join(f"{name} {value}" for name, value in vars(where).items() if value)
        problem = f"The hub can't be searched ({_first_line(error)}): try again online."
        return [Candidate(f"hub: {about}", problem=problem)]


def _hits(where: HubSearch) -> Iterator[Candidate]:
    if where.author or where.search:
        about = {"author": where.author, "search": where.search, "pipeline_tag": "text-generation"}
        yield from map(_told, HfApi().list_models(**about, sort="created_at", limit=MAX_LISTED, expand=LISTED))
    if where.collection:
        items = HfApi().get_collection(where.collection).items
        yield from (_found(Entry(item.item_id)) for item in items if item.item_type == "model")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
