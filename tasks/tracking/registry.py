"""Registered models: an adapter by name and seed, as in `models:/lori-scale-r8.lori-s.nlu@seed-0`, or the `@best`."""

import json
import re

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks.results import Runtime
from tasks.tracking.client import connect, is_server, key_lock

KNOWN, GONE, REFUSED = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"
LINK_TAG = "mlflow.modelVersions"  # of a logged model: MLflow's Models tab shows its versions by it
ADDRESS_TAG = "lori.address"  # of a logged model: `models:/NAME@ALIAS`
BEST = "best"
VALIDATION_TAG = "lori.validation"  # of a version: its score and the key of the rows, in one tag as JSON


def registered_name(base_model: str, rank: int | str, method: str, domain: str) -> str:
    """The name that versions for all seeds and settings share; a revision of the base is in their tags instead."""
    base = base_model.partition("@")[0]
    parts = (f"lori-{base}-r{rank}", method, domain)
    return ".".join(re.sub(r"[^\w+-]", "-", part) for part in parts)  # MLflow takes no slash or colon


def register(runtime: Runtime, uri: str, name: str, *, alias: str, tags: dict[str, str]) -> str:
    """A version of `name` that is the logged model `uri`, and `alias` for it. Returns `models:/NAME@ALIAS`.

    What is registered already stays the version it is; of several that race the first counts.
    """
    client, address = connect(runtime.tracking_uri), f"models:/{name}@{alias}"
    model = client.get_logged_model(uri.removeprefix("models:/"))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != KNOWN:
            raise
    if not is_server(runtime.tracking_uri):
        mlflow.set_tracking_uri(runtime.tracking_uri)  # a registry in a file resolves URIs by it
    with key_lock(runtime, f"registry-{name}"):
        version = _version_of(client, name, uri) or _new_version(client, name, model, tags)
        if client.get_registered_model(name).aliases.get(alias) != version.version:
            _set_alias(client, name, alias, version.version)
        link = json.dumps([{"name": name, "version": int(version.version)}])
        if model.tags.get(ADDRESS_TAG) != address or model.tags.get(LINK_TAG) != link:
            client.set_logged_model_tags(model.model_id, {ADDRESS_TAG: address, LINK_TAG: link})
    return address


def promote_best(runtime: Runtime, uri: str, *, score: float, rows: str) -> None:
    """Note the validation score of a registered model; the best version on the same `rows` gets the alias `best`.

    Of equals it is the oldest. Whoever is last to set the alias has seen every score: machines that race agree.
    """
    client, name = connect(runtime.tracking_uri), str(address_of(runtime, uri)).removeprefix("models:/").split("@")[0]
    with key_lock(runtime, f"registry-{name}"):
        version = str(min(int(found.version) for found in _versions_of(client, name, uri)))  # a file has them as int
        client.set_model_version_tag(name, version, VALIDATION_TAG, json.dumps({"score": score, "rows": rows}))
        while (best := _best_version(client, name, rows)) != str(client.get_registered_model(name).aliases.get(BEST)):
            _set_alias(client, name, BEST, best)


def _set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Machines that are the first to set it all insert it at once: whom the database refuses tries again."""
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if error.error_code != REFUSED:
            raise
        client.set_registered_model_alias(name, alias, version)


def _best_version(client: MlflowClient, name: str, rows: str) -> str:
    found = client.search_model_versions(f"name = '{name}'")
    told = {int(one.version): json.loads(one.tags[VALIDATION_TAG]) for one in found if VALIDATION_TAG in one.tags}
    scores = {version: validation["score"] for version, validation in told.items() if validation["rows"] == rows}
    return str(max(scores, key=lambda version: (scores[version], -version)))


def address_of(runtime: Runtime, uri: str) -> str | None:
    """What `register` returned for the logged model `uri`; None for one that was not registered, or was deleted."""
    try:
        model = connect(runtime.tracking_uri).get_logged_model(uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code != GONE:
            raise
        return None
    return model.tags.get(ADDRESS_TAG)


def _version_of(client: MlflowClient, name: str, uri: str) -> ModelVersion | None:
    return min(_versions_of(client, name, uri), key=lambda version: int(version.version), default=None)


def _versions_of(client: MlflowClient, name: str, uri: str) -> list[ModelVersion]:
    return client.search_model_versions(f"name = '{name}' and source_path = '{uri}'")


def _new_version(client: MlflowClient, name: str, model: LoggedModel, tags: dict[str, str]) -> ModelVersion:
    mine = client.create_model_version(
        name, model.model_uri, model.source_run_id, tags=tags, model_id=model.model_id, await_creation_for=0
    )
    elected = _version_of(client, name, model.model_uri) or mine
    if elected.version != mine.version:  # another machine was sooner
        client.delete_model_version(name, mine.version)
    return elected
