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
    licences: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Candidate:
    """A base model at one revision. `base_model` is what a flow takes.

    `identity` is `name@revision`; where it can't be known it is None, and `problem` says why.
    """

    base_model: str
    identity: str | None = None
    num_parameters: int | None = None
    licence: str | None = None
    problem: str | None = None


def read_entries(path: Path) -> list[Entry]:
    """The candidates in a YAML file: a list named `base_models` of names, or of an `Entry`'s fields.

    Raises:
        ValueError: if there is no such file, or something else in it.
    """
    if not path.is_file():
        raise ValueError(f"There is no file of candidates {path}: name one as `source`, or leave `source` empty.")
    names = [field.name for field in fields(Entry)]
    try:
        written = yaml.safe_load(path.read_text())["base_models"]
        items = [item if isinstance(item, dict) else {"base_model": item} for item in written]
        if unquoted := [value for item in items for value in item.values() if not isinstance(value, str)]:
            raise TypeError(f"{unquoted[0]!r} is no text: quote it")
        entries = [Entry(**item) for item in items]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no list of candidates ({error}). Expected `base_models:` with names, or with entries of"
            f" {', '.join(names)}."
        ) from error
    return entries


def find_candidates(entries: Sequence[Entry], where: HubSearch, models_dir: str | None = None) -> list[Candidate]:
    """The candidates of a list and of a search on the hub, each once, in that order.

    What the hub does not tell about one of them is that candidate's `problem`. Where there is no hub, the list's rows
    of `BASE_MODELS`, folders and entries with a commit remain; the search is then a candidate with a problem.

    Raises:
        ValueError: if the collection does not exist.
    """
    trouble = _hub_trouble()
    found = [_resolved(entry, models_dir, trouble) for entry in entries]
    if where != HubSearch():
        found += _searched(where, models_dir, trouble)
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(candidate.identity or candidate.base_model, candidate)
    return list(unique.values())


def check_candidate(candidate: Candidate, filters: Filters, models_dir: str | None = None) -> Candidate:
    """The candidate, with its size, if `filters` let it through; the hub's or that of its configuration.

    Raises:
        ValueError, BaseUnavailable: if they don't, or if its configuration can't be read.
    """
    if filters.licences is not None and candidate.licence not in filters.licences:
        raise ValueError(
            f"its licence, {candidate.licence or 'which is not known'}, is not one of {', '.join(filters.licences)}."
        )
    num_parameters = candidate.num_parameters
    if num_parameters is None:
        base, folder = split_base(candidate.base_model)
        num_parameters = architecture_of(base_model(base, folder or models_dir)).num_parameters
    if num_parameters > filters.max_billions * BILLION:
        raise ValueError(
            f"it has {num_parameters / BILLION:.2f} billion parameters, and {filters.max_billions:g} are the limit."
        )
    return replace(candidate, num_parameters=num_parameters)


def _hub_trouble() -> str | None:
    """Why the hub can't be asked; None if it answers."""
    try:
        answer = get_session().head(HfApi().endpoint, timeout=SECONDS_TO_ANSWER)
    except (OSError, HTTPError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return f"status {answer.status_code}" if answer.status_code >= SERVER_ERROR else None


def _resolved(entry: Entry, models_dir: str | None, trouble: str | None) -> Candidate:
    try:
        return _candidate(entry, models_dir, trouble)
    except (ValueError, BaseUnavailable) as error:
        return Candidate(entry.base_model, licence=entry.licence, problem=str(error))


def _candidate(entry: Entry, models_dir: str | None, trouble: str | None) -> Candidate:
    base, folder = split_base(entry.base_model)
    name, _, at = base.partition("@")
    revision, row = at or entry.revision, BASE_MODELS.get(name)
    source = row.source if row else name
    if folder or not HUB_ID.fullmatch(source):
        found = base_model(f"{name}@{revision}" if revision else name, folder or models_dir).identity
        return Candidate(str(Path(folder, base)) if folder else found, found, licence=entry.licence)
    if row and revision not in (None, row.revision):
        raise ValueError(
            f"{name} is a row of BASE_MODELS at {row.revision}: leave the revision out, or name {source}."
        )
    commit = row.revision if row else revision
    if trouble is None:
        asked = _asked(source, commit)
        return replace(asked, licence=entry.licence or asked.licence)
    if not commit or not COMMIT.fullmatch(commit):
        raise BaseUnavailable(
            f"its commit is not known, as the hub can't be asked ({trouble}): write it in the file as `revision`."
        )
    return Candidate(f"{name}@{commit}", f"{name}@{commit}", licence=entry.licence)


def _asked(source: str, revision: str | None) -> Candidate:
    try:
        return _told(HfApi().model_info(source, revision=revision, timeout=SECONDS_TO_ANSWER))
    except (OSError, HTTPError) as error:
        raise explained(error, source, revision or "main") from None


def _told(info: ModelInfo) -> Candidate:
    """What the hub says of a model; one that is a row of `BASE_MODELS` goes by the row's name."""
    rows = {(row.source, row.revision): name for name, row in BASE_MODELS.items()}
    base = f"{rows.get((info.id, info.sha), info.id)}@{info.sha}"
    size = info.safetensors.total if info.safetensors else None
    licences = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return Candidate(base, base, size, licences[0] if licences else None)


def _searched(where: HubSearch, models_dir: str | None, trouble: str | None) -> list[Candidate]:
    about = ", ".join(f"{name} {value}" for name, value in vars(where).items() if value)
    try:
        if trouble:
            raise OSError(trouble)
        listed = [_told(info) for info in _listed(where)]
        return listed + [_resolved(Entry(name), models_dir, None) for name in _collected(where.collection)]
    except (OSError, HTTPError) as error:
        return [Candidate(f"hub: {about}", problem=f"the hub can't be searched ({error}).")]


def _listed(where: HubSearch) -> Iterator[ModelInfo]:
    if where.author or where.search:
        yield from HfApi().list_models(
            author=where.author,
            search=where.search,
            pipeline_tag="text-generation",
            sort="created_at",
            limit=MAX_LISTED,
            expand=LISTED,
        )


def _collected(slug: str | None) -> list[str]:
    if slug is None:
        return []
    try:
        items = HfApi().get_collection(slug).items
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        raise ValueError(
            f"There is no collection {slug!r} on the hub: take the end of its address, such as org/name-0123456789ab."
        ) from None
    return [item.item_id for item in items if item.item_type == "model"]
