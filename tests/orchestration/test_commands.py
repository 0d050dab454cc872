"""`python -m flows`: what it lists, what it shows of a flow, and what it refuses before anything is started."""

import inspect
import json
import subprocess
import sys
from pkgutil import resolve_name

import pytest

from flows import deployments
from flows.__main__ import FUNCTIONS, PAPER, deployed
from lori.choices.domains import DOMAINS
from lori.choices.methods import METHODS
from lori.evaluation.claims import MIN_SEEDS
from tasks.machine import ROOT

HEAVY = ("torch", "prefect", "mlflow", "transformers")
# As `python -m flows` with these arguments, and then what it has imported
RUN = f"""
import runpy, sys
try:
    runpy.run_module("flows", run_name="__main__")
except SystemExit as end:
    print(end)
print([name for name in {HEAVY} if name in sys.modules])
"""


def said(*arguments: str) -> str:
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_flow_is_listed_with_what_it_does() -> None:
    listed = said()
    assert all(f"  {name:12}{row['description']}\n" in listed for name, row in deployed().items())
    assert [*deployed()] == [
        "full-paper", "adapt", "merge", "continual", "ablate", "sweep", "claims", "published", "scout",
    ]  # fmt: skip


@pytest.mark.parametrize("name", deployed())
def test_help_shows_every_parameter_of_the_flow_that_is_deployed(name: str) -> None:
    flow = getattr(deployments, name.replace("-", "_"))
    assert flow.fn is resolve_name(FUNCTIONS.get(name, PAPER))
    shown = said(name, "--help")
    for parameter in inspect.signature(flow.fn).parameters:
        assert f"\n  {parameter}: " in shown or f"\n  {parameter} (default " in shown, parameter


def test_help_shows_types_defaults_and_choices() -> None:
    shown = " ".join(said("merge", "--help").split())
    assert 'profile (default "scale"): scale | smoke | paper | paper-smoke' in shown
    assert 'tables (default ["merging"]): [single | merging | continual, …]' in shown
    assert "scope: model | module | projection | layer | matrix" in shown
    assert "sparsity: number Share of B's entries that a mask leaves at zero, 0.9 in the paper." in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["adapt", "-p", 'methods=["lorax"]'], "methods: Input should be 'base', 'full', 'lora'"),
        (["adapt", "-p", "domains=nlu"], 'domains: Input should be a valid list, not "nlu"'),
        (["merge", "-p", 'merge_methods=["average"]'], "merge_methods: Input should be 'concat', 'linear'"),
        (["full-paper", "-p", "scope=neuron"], "scope: Input should be 'model', 'module'"),
        (["full-paper", "-p", 'tables=["fourth"]'], "tables: Input should be 'single', 'merging' or 'continual'"),
        (["full-paper", "--profile", "huge"], "profile: Input should be 'scale', 'smoke'"),
        (["full-paper", "-p", "prompt_style=ours"], "prompt_style: Input should be 'plain' or 'authors'"),
        (["full-paper", "-p", 'hardware={"gpu": "abacus"}'], "hardware: Input should be 'h200', 'h100'"),
        (["full-paper", "-p", 'learning_rates={"lorax": 1}'], "learning_rates: Input should be 'base', 'full'"),
        (["full-paper", "-p", "sparsty=0.8"], "There is no parameter sparsty. Known: profile, base_model"),
        (["scout", "-p", "limit=0"], "limit: Input should be greater than or equal to 1, not 0."),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_known_ones_before_anything_heavy_is_imported(
    arguments: list[str], problem: str
) -> None:
    lines = said(*arguments).splitlines()
    assert lines[0].startswith(f"{arguments[0]}: {problem}")
    assert lines[-1] == "[]"


def test_prefects_form_offers_the_choices_and_says_what_each_parameter_means() -> None:
    properties = deployments.full_paper.parameters.properties
    offered = {name: json.dumps(properties[name]) for name in ("methods", "domains")}
    assert all(f'"{method}"' in offered["methods"] for method in METHODS)
    assert all(f'"{domain}"' in offered["domains"] for domain in DOMAINS)
    assert properties["rank"]["description"] == "Rank r of the adapters; α stays 2 r."


def test_the_claims_are_deployed_with_as_many_seeds_as_decide_them() -> None:
    assert len(deployed()["claims"]["parameters"]["seeds"]) == MIN_SEEDS


def test_a_runs_name_says_what_was_asked_for_and_differs() -> None:
    defaults = {name: each.default for name, each in inspect.signature(resolve_name(PAPER)).parameters.items()}
    asked = {"profile": "smoke", "base_model": "mistral-7b", "sparsity": 0.8, "seeds": [0, 1], "tables": ["merging"]}
    assert deployments.run_name("merge", {**defaults, **asked}, defaults) == (
        "merge smoke mistral-7b · sparsity 0.8 · seeds 0, 1"  # the tables are the deployment's
    )
    assert deployments.run_name("lori", {**defaults, "refresh": ["all"]}, defaults) == "lori scale · refresh all"
