"""New base models: which there are, which have their paper already, and the paper of the next ones."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows import parameters as p

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def scout(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    source: p.Source = "base-models.yaml",
    base_models: p.BaseModels = None,
    collection: p.Collection = None,
    author: p.Author = None,
    search: p.Search = None,
    profile: p.ProfileName = "paper",
    max_billions: p.MaxBillions = 10.0,
    licences: p.Licences = None,
    data_dir: p.DataDir = None,
    hardware: p.Machine = None,
    limit: p.Limit = 1,
    max_attempts: p.MaxAttempts = 3,
    dry_run: p.DryRun = True,
) -> "State":
    """Start `lori/full-paper` for base models that have none yet. A table says for each candidate why, or why not."""
    from flows.paper_runs import Order, start_papers  # Prefect and MLflow: a wrong parameter waits for neither
    from lori.base_models.candidates import Entry, Filters, HubSearch, find_candidates, read_entries
    from tasks.machine import local_runtime

    entries = (read_entries(Path(source).expanduser()) if source else []) + [Entry(name) for name in base_models or []]
    where = HubSearch(collection or None, author or None, search or None)
    if not entries and where == HubSearch():
        raise ValueError("There is nowhere to look: set `source`, `base_models`, `collection`, `author` or `search`.")
    parameters = {"data_dir": data_dir, "hardware": hardware and asdict(hardware)}
    order = Order(profile, parameters, Filters(max_billions, licences), limit, max_attempts, dry_run)
    return start_papers(find_candidates(entries, where, local_runtime().models_dir), order)
