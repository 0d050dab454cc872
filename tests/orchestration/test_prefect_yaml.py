"""The deployments of prefect.yaml: flows that exist, parameters that they take, and who holds a limit."""

import re

import pytest
from prefect import Flow
from prefect.utilities.importtools import import_object

from flows.servers.bootstrap import DRIVER_POOL, GPU_POOL
from helpers.deployments import DEPLOYMENTS, NAMES


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_names_a_flow_and_parameters_that_it_takes(deployment: dict) -> None:
    flow = import_object(deployment["entrypoint"])
    assert isinstance(flow, Flow)
    given = deployment.get("parameters", {})  # those of a job are its driver's to say
    assert not given or given.items() <= flow.validate_parameters(given).items()
    if deployment["name"] != "daily":  # a restarted server crashes a long run that holds a limit
        assert "concurrency_limit" not in deployment


def test_what_takes_long_holds_no_lease_and_only_the_look_out_is_on_a_schedule() -> None:
    limited = [deployment["name"] for deployment in DEPLOYMENTS if "concurrency_limit" in deployment]
    assert limited == ["daily"]
    active = [
        schedule["slug"]
        for deployment in DEPLOYMENTS
        for schedule in deployment.get("schedules", ())
        if schedule["active"]
    ]
    assert active == ["daily"]


def test_deployments_are_modules_in_pools_that_the_bootstrap_makes() -> None:
    pools = {deployment["name"]: deployment["work_pool"]["name"] for deployment in DEPLOYMENTS}
    assert pools == {**dict.fromkeys(NAMES, DRIVER_POOL), "gpu": GPU_POOL}
    assert all("lori" in deployment["tags"] for deployment in DEPLOYMENTS)
    assert all(re.fullmatch(r"flows\.\w+\.\w+", deployment["entrypoint"]) for deployment in DEPLOYMENTS)
