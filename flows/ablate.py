"""Ablations (paper, section 4.4): one setting changed at a time, of LoRI-S, of merges, and of continual learning."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import adapter, scores
from flows.continual import after
from flows.merge import merged
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.choices.profiles import ABLATIONS, CONTINUAL_ROWS, MERGE_CURVE
from lori.config import Hardware
from lori.evaluation.row_names import WEIGHT, continual_setting, merge_setting
from lori.recipes import checked_profile

MASKED = ("lori-s",)  # what masks and ranks are tried on


def mask_ablations(study: Study, settings: Mapping[str, Sequence[Any]]) -> list[Row]:
    """A row for each value of each setting and each method, on every domain; the others are the profile's."""
    rows, profile = [], study.profile
    for name, values in settings.items():
        for value, method, domain, seed in product(values, profile.methods, profile.domains, profile.seeds):
            varied = study.varied(**{name: value})
            trained = adapter(varied, method, domain, seed)
            labels = {"method": method, "setting": name.replace("_", " "), "value": _text(value), "domain": domain}
            scored, usual = [scores(varied, trained, domain)], _text(getattr(profile, name))
            rows.append(Row("ablations", {**labels, "seed": seed}, trained, scored, usual))
    return rows


def merge_ablations(study: Study, weights: Sequence[float]) -> list[Row]:
    """Every merge of every method with other weights; nothing if there are none.

    The first of the merges also of fewer domains' adapters, and of adapters that are scaled to one norm.
    """
    rows, profile = [], study.profile
    if not weights:
        return rows
    for method, merge_method, seed in product(profile.merged, profile.merge_methods, profile.seeds):
        for setting, value, varied in _merges(study, merge_method, weights):
            done = merged(varied, method, merge_method, seed)
            labels = {"method": method, "setting": setting, "value": value, "seed": seed}
            scored = [scores(varied, done, domain) for domain in varied.profile.domains]
            rows.append(Row("ablations", labels, done, scored))
    return rows


def _merges(study: Study, merge_method: str, weights: Sequence[float]) -> Iterator[tuple[str, str, Study]]:
    """Setting, value and the study with it."""
    profile = study.profile
    num_domains = len(profile.domains)
    for weight in weights:
        yield merge_setting(WEIGHT, merge_method), f"{weight:g}", study.varied(weights=(weight,) * num_domains)
    if merge_method != profile.merge_methods[0]:
        return
    for num in range(2, num_domains):
        yield merge_setting("adapters", merge_method), str(num), study.varied(domains=profile.domains[:num])
    yield merge_setting("norms", merge_method), "matched", study.varied(match_norms=True)


def continual_ablations(study: Study, num_rows: Sequence[int]) -> list[Row]:
    """Continual learning on the first rows of each new domain: what is kept beside what is learned by then.

    With all rows as well; nothing if no number of rows is given.
    """
    rows, profile = [], study.profile
    if not num_rows:
        return rows
    first = profile.continual_first
    new_domains = [domain for domain in profile.domains if domain != first]
    for method, domain, seed, num in product(profile.continual_methods, new_domains, profile.seeds, (*num_rows, None)):
        trained = after(study, method, domain, seed, num)
        setting = continual_setting(first, domain)
        labels = {"method": method, "setting": setting, "value": _text(num), "seed": seed}
        scored = [scores(study, trained, first), scores(study, trained, domain)]
        rows.append(Row("ablations", labels, trained, scored))
    return rows


def _text(value: Any) -> str:
    return "all" if value is None else str(value)


@flow(name="ablate", flow_run_name=run_name, task_runner=THREADS)
def ablate(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    domains: list[str] | None = None,
    methods: list[str] | None = None,
    merge_methods: list[str] | None = None,
    sparsities: list[float] | None = None,
    scopes: list[str] | None = None,
    ranks: list[int] | None = None,
    calibration_rows: list[int] | None = None,
    weights: list[float] | None = None,
    continual_rows: list[int] | None = None,
    seeds: list[int] | None = None,
    learning_rates: dict[str, float] | None = None,
    prompt_style: str | None = None,
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    hardware: Hardware | None = None,
    refresh: list[str] | None = None,
    plan_only: bool = False,
    push_to: str | None = None,
) -> State:
    """Change one setting at a time: LoRI-S' masks and rank, the merges, continual learning.

    What is left out is in choices/profiles.py: ABLATIONS, MERGE_CURVE, CONTINUAL_ROWS. An empty list is none of that
    setting, of `weights` no merges, of `continual_rows` no continual learning. Beside what is in a list, the profile's
    own value is there to compare with.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py).
        methods: Rows of METHODS (lori/choices/methods.py) that are merged and learn continually.
        merge_methods: Rows of MERGE_METHODS (lori/choices/merge_methods.py).
        sparsities: Shares of B's entries that a mask leaves at zero, from 0 to below 1.
        scopes: Rows of SCOPES (lori/choices/scopes.py): which entries compete for the mask.
        ranks: Ranks r of the adapters; α stays 2 r.
        calibration_rows: Numbers of rows that the dense adapter trains on whose B gives the mask.
        weights: Weights of all adapters in a merge.
        continual_rows: Numbers of rows of the new domain, a batch or more.
        seeds: One table row is the mean over these.
        learning_rates: In place of the recipe's, by method, such as those that `sweep` chose.
        prompt_style: How real rows are written, `plain` or `authors` (lori/datasets/prompts.py).
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        eval_batch_size: Sequences that are generated at once.
        hardware: GPU, memory and how training is to fit it (lori/config.py).
        refresh: Cells to compute again: `all`, steps, or first words of titles such as `train lora math`.
        plan_only: Say what it would take and compute nothing.
        push_to: User or organisation of the hub that gets the adapters of the tables, each in a private repository.
    """
    overrides = {"base_model": base_model, "domains": domains, "merge_methods": merge_methods, "seeds": seeds}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    overrides |= {"learning_rates": learning_rates}
    if methods:
        overrides |= {"methods": list(dict.fromkeys([*MASKED, *methods]))}
        overrides |= {"merged": methods, "continual_methods": methods}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "push_to": push_to}
    asked = {"sparsity": sparsities, "scope": scopes, "rank": ranks, "calibration_rows": calibration_rows}
    study = begin(profile, **place, **overrides)
    given = {name: _values(study, name, values) for name, values in asked.items()}
    curve = [*MERGE_CURVE] if weights is None else [float(each) for each in weights]
    rows = [*CONTINUAL_ROWS] if continual_rows is None else continual_rows
    _check(profile, overrides, study, {**given, "weights": [[each] * len(study.profile.domains) for each in curve]})
    if rows and min(rows) < study.profile.batch_size:
        raise ValueError(f"continual_rows are a batch of {study.profile.batch_size} or more, not {min(rows)}.")
    return carry_out(
        study,
        lambda study: mask_ablations(study.varied(methods=MASKED), given),
        lambda study: merge_ablations(study, curve),
        lambda study: continual_ablations(study, rows),
        asked={"ablations": given, "merge_curve": curve, "continual_rows": rows},
    )


def _check(name: str, overrides: Mapping[str, Any], study: Study, settings: Mapping[str, Sequence[Any]]) -> None:
    """Each value by itself, before any time is spent: it raises what `recipes.profile` does."""
    found = {"base_model": study.profile.base_model, "models_dir": study.profile.models_dir}
    for setting, values in settings.items():
        for value in values:
            checked_profile.profile(name, **{**overrides, **found, setting: value})


def _values(study: Study, name: str, values: list[Any] | None) -> list[Any]:
    """Those asked for, or the usual ones, and the profile's own, which the others are compared with; none for []."""
    own = getattr(study.profile, name)
    return list(dict.fromkeys([*(ABLATIONS[name] if values is None else values), own])) if values != [] else []


if __name__ == "__main__":
    from flows.servers.local import main

    main(ablate)
