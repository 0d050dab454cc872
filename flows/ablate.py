"""Ablations (paper, section 4.4): one setting changed at a time, of LoRI-S, of merges, and of continual learning."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from flows import parameters as p
from flows.study.comparison import Row
from flows.tables import adapter, after, merged, scores
from lori.choices.profiles import ABLATIONS, CONTINUAL_ROWS, MERGE_CURVE
from lori.evaluation.row_names import WEIGHT, continual_setting, merge_setting
from lori.recipes import checked_profile

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.study.run import Study

MASKED = ("lori-s",)  # what masks and ranks are tried on


def ablate(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: p.ProfileName = "scale",
    base_model: p.Base = None,
    domains: p.Domains = None,
    methods: p.Methods = None,
    merge_methods: p.MergeMethods = None,
    sparsities: p.Sparsities = None,
    scopes: p.Scopes = None,
    ranks: p.Ranks = None,
    calibration_rows: p.CalibrationRows = None,
    weights: p.Curve = None,
    continual_rows: p.ContinualRows = None,
    seeds: p.Seeds = None,
    learning_rates: p.LearningRates = None,
    prompt_style: p.PromptStyle = None,
    data_dir: p.DataDir = None,
    eval_batch_size: p.BatchSize = None,
    hardware: p.Machine = None,
    refresh: p.Refresh = None,
    plan_only: p.PlanOnly = False,
    push_to: p.PushTo = None,
) -> "State":
    """Change one setting at a time: LoRI-S' masks and rank; the merges and the continual learning of `methods`.

    What is left out is in choices/profiles.py: ABLATIONS, MERGE_CURVE, CONTINUAL_ROWS. An empty list is none of that
    setting, of `weights` no merges, of `continual_rows` no continual learning. Beside what is in a list, the profile's
    own value is there to compare with.
    """
    from flows.study.run import prepare_study, run_study  # Prefect and MLflow: a wrong parameter waits for neither

    changes = {"base_model": base_model, "domains": domains, "merge_methods": merge_methods, "seeds": seeds}
    changes |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    changes |= {"learning_rates": learning_rates}
    if methods:
        changes |= {"methods": list(dict.fromkeys([*MASKED, *methods]))}
        changes |= {"merged": methods, "continual_methods": methods}
    study = prepare_study(profile, hardware=hardware, refresh=refresh, plan_only=plan_only, push_to=push_to, **changes)
    asked = {"sparsity": sparsities, "scope": scopes, "rank": ranks, "calibration_rows": calibration_rows}
    given = {name: _values(study, name, values) for name, values in asked.items()}
    curve = [*MERGE_CURVE] if weights is None else weights
    rows = [*CONTINUAL_ROWS] if continual_rows is None else continual_rows
    _check(profile, changes, study, {**given, "weights": [[each] * len(study.profile.domains) for each in curve]})
    if rows and min(rows) < study.profile.batch_size:
        raise ValueError(f"continual_rows are a batch of {study.profile.batch_size} or more, not {min(rows)}.")
    return run_study(
        study,
        lambda study: mask_ablations(study.varied(methods=MASKED), given),
        lambda study: merge_ablations(study, curve),
        lambda study: continual_ablations(study, rows),
        asked={"ablations": given, "merge_curve": curve, "continual_rows": rows},
    )


def mask_ablations(study: "Study", settings: Mapping[str, Sequence[Any]]) -> list[Row]:
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


def merge_ablations(study: "Study", weights: Sequence[float]) -> list[Row]:
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


def _merges(study: "Study", merge_method: str, weights: Sequence[float]) -> Iterator[tuple[str, str, "Study"]]:
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


def continual_ablations(study: "Study", num_rows: Sequence[int]) -> list[Row]:
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


def _check(name: str, changes: Mapping[str, Any], study: "Study", settings: Mapping[str, Sequence[Any]]) -> None:
    """Each value by itself, before any time is spent: it raises what `checked_profile.profile` does."""
    changes = {**changes, "base_model": None, "base": study.profile.base}  # it is found already
    for setting, values in settings.items():
        for value in values:
            checked_profile.profile(name, **{**changes, setting: value})


def _values(study: "Study", name: str, values: list[Any] | None) -> list[Any]:
    """Those asked for, or the usual ones, and the profile's own, which the others are compared with; none for []."""
    own = getattr(study.profile, name)
    return list(dict.fromkeys([*(ABLATIONS[name] if values is None else values), own])) if values != [] else []
