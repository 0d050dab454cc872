"""`python -m flows` lists the flows, and `python -m flows NAME` runs one in this terminal, on stores of its own.

Parameters are checked first: before a server is started, or Prefect, MLflow or torch is imported.
"""

import argparse
import inspect
import json
import pkgutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from flows.parameters import meaning
from tasks.machine import ROOT

JOB = "gpu"  # the deployment that studies ask for their cells
PAPER = "flows.paper:paper"  # of every flow that has no function of its own
FUNCTIONS = {name: f"flows.{name}:{name}" for name in ("ablate", "sweep", "published", "scout")}


def deployed() -> dict[str, dict[str, Any]]:
    """The flows of prefect.yaml: by name, a deployment each."""
    rows = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return {_attribute(row).replace("_", "-"): row for row in rows if row["name"] != JOB}


def _attribute(row: Mapping[str, Any]) -> str:
    return row["entrypoint"].rpartition(".")[2]


def checked(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, if they are parameters that the flow's function takes.

    Raises:
        ValueError: for a name or a value that it does not take, with those that it does.
    """
    known = inspect.signature(function).parameters
    problems = [f"There is no parameter {name}. Known: {', '.join(known)}." for name in given if name not in known]
    problems += [
        f"{name} is missing: {meaning(each.annotation)}"
        for name, each in known.items()
        if each.default is inspect.Parameter.empty and name not in given
    ]
    for name in given.keys() & known.keys():
        try:
            TypeAdapter(known[name].annotation).validate_python(given[name])
        except ValidationError as error:
            problems += [
                f"{name}: {problem['msg']}, not {json.dumps(problem['input'])}." for problem in error.errors()
            ]
    if problems:
        raise ValueError("\n".join(problems))
    return dict(given)


def usage(row: Mapping[str, Any], function: Callable[..., Any]) -> str:
    """What the flow does, and each of its parameters with its default, its values and its meaning."""
    lines = [row["description"], "", *inspect.cleandoc(function.__doc__ or "").splitlines(), "", "Parameters:"]
    for name, each in inspect.signature(function).parameters.items():
        default = row.get("parameters", {}).get(name, each.default)
        told = "" if default in (None, inspect.Parameter.empty) else f" (default {json.dumps(default)})"
        lines += textwrap.wrap(
            f"{name}{told}: {values_of(each.annotation)}", 110, initial_indent="  ", subsequent_indent="      "
        )
        lines += textwrap.wrap(meaning(each.annotation), 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def values_of(annotation: Any) -> str:
    """What a parameter takes, in words."""
    schema = TypeAdapter(annotation).json_schema()
    return _values(schema, schema.get("$defs", {}))


def _values(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What JSON a schema takes, in words; `definitions` are of those that it names."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(_values(kind, definitions) for kind in kinds)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        return f"[{_values(schema['items'], definitions)}, …]"
    if "properties" in schema:
        return f"{{{', '.join(f'{n}: {_values(s, definitions)}' for n, s in schema['properties'].items())}}}"
    if "additionalProperties" in schema:
        kinds = [_values(schema[part], definitions) for part in ("propertyNames", "additionalProperties")]
        return f"{{{': '.join(kinds)}, …}}"
    return schema["type"]


def run(name: str, row: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Run a flow here; what a user can mend is one sentence, not a traceback."""
    from flows.servers.local import use_local_stores, wait_for_local_server

    use_local_stores()  # before Prefect is imported and reads its settings
    from prefect.exceptions import PrefectException

    from flows import deployments
    from tasks import tracking
    from tasks.machine import local_runtime

    warnings.simplefilter("ignore", FutureWarning)  # transformers' to PEFT, nothing that we could mend
    # Without a handler a termination would be no exit, and nobody would say in Prefect that the flow is over
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    try:
        tracking.import_store(local_runtime().tracking_uri)  # while the server starts
        wait_for_local_server()
        getattr(deployments, _attribute(row))(**parameters)
    except (ValueError, RuntimeError, PrefectException) as error:  # StackError among them
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What was computed stays: the next run goes on from there.")


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    """The command line."""
    rows = deployed()
    listed = "\n".join(f"  {name:12}{row['description']}" for name, row in rows.items())
    parser = argparse.ArgumentParser("python -m flows", description="Run a flow in this terminal.", add_help=False)
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, f"flows:\n{listed}"
    parser.add_argument("name", nargs="?", choices=rows, metavar="NAME", help="a flow of those below")
    parser.add_argument("--profile", default="smoke", help="a row of PROFILES; smoke if left out")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="VALUE: JSON or text")
    parser.add_argument("-h", "--help", action="store_true", help="all parameters of the flow")
    told = parser.parse_args()
    if told.name is None:
        parser.print_help()
        return
    name: str = told.name
    row, function = rows[name], pkgutil.resolve_name(FUNCTIONS.get(name, PAPER))
    if told.help:
        print(usage(row, function))
        return
    given = {**row.get("parameters", {}), "profile": told.profile, **dict(map(_parameter, told.param))}
    try:
        parameters = checked(function, given)
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    run(name, row, parameters)


if __name__ == "__main__":
    main()
