"""What deploy/ gives to an operator, as its tools read it: systemd units, containers, a Kubernetes template."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes_asyncio.client import ApiClient, V1Job
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.servers.bootstrap import DRIVER_POOL, GPU_POOL, KUBERNETES_TEMPLATE, kubernetes_template
from tasks.machine import ROOT

UNITS = sorted((ROOT / "deploy/systemd").iterdir())
ENVIRONMENTS = sorted((ROOT / "deploy/environment").iterdir())
SECRETS = re.compile(r"^(\w*(?:AUTH|KEY|PASSWORD|TOKEN|SECRET)\w*)[=:][ ]*(\S+)", re.MULTILINE)


def verify(units: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    paths = [directory / path.name for path in UNITS]
    for path, text in zip(paths, units, strict=True):
        bin_dir = Path(sys.executable).parent
        path.write_text(text.replace("/opt/lori/.venv/bin", str(bin_dir)).replace("/opt/lori", str(ROOT)))
    command = ["systemd-analyze", "verify", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    texts = [path.read_text() for path in UNITS]
    accepted = verify(texts, tmp_path)
    assert (accepted.returncode, accepted.stderr) == (0, "")
    refused = verify([text.replace("ExecStart=/opt/lori", "ExecStart=/opt/nothing") for text in texts], tmp_path)
    assert "is not executable" in refused.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_names_environment_files_that_there_are_examples_of(unit: Path) -> None:
    names = re.findall(r"^EnvironmentFile=/etc/lori/(\S+)$", unit.read_text(), re.MULTILINE)
    assert names
    assert {f"{name}.example" for name in names} <= {path.name for path in ENVIRONMENTS}
    assert "User=lori\n" in unit.read_text()
    assert "NoNewPrivileges=true\n" in unit.read_text()


@pytest.mark.parametrize("path", [*ENVIRONMENTS, *UNITS, ROOT / "prefect.yaml"], ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert SECRETS.findall(path.read_text()) == []


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def test_containers_bind_to_the_loopback_alone_and_get_their_secrets_from_outside() -> None:
    text = (ROOT / "deploy/compose.yaml").read_text()
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    asked = set(re.findall(r"\$\{(\w+)", text))
    offered = (ROOT / "deploy/environment/compose.env.example").read_text()
    assert asked == set(re.findall(r"^(\w+)=", offered, re.MULTILINE))
    assert all(
        value.startswith("${") for _, value in re.findall(r"^ +(\w*(?:AUTH|KEY|PASSWORD|TOKEN)\w*): (\S+)", text, re.M)
    )


def test_the_containers_fit_together() -> None:
    services = compose()["services"]
    named = {name for service in services.values() for name in service.get("depends_on", ())}
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert named <= services.keys()
    assert {name for name in mounted if not name.startswith(".")} == compose()["volumes"].keys()
    assert all((ROOT / "deploy" / name).exists() for name in mounted if name.startswith("."))
    assert services["driver"]["environment"]["LORI_EXECUTOR"] == "deployment"
    assert services["driver"]["command"][5] == DRIVER_POOL
    assert services["gpu"]["command"][5] == GPU_POOL
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


async def rendered(**variables: Any) -> V1Job:
    """What a worker would send to Kubernetes for a flow run, and how Kubernetes' own types read it."""
    template = kubernetes_template("registry.example.org/lori:1")
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, variables)
    with temporary_settings({PREFECT_API_URL: "http://prefect.example.org/api"}):
        configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="train lora math  seed 0"))
    manifest = json.loads(json.dumps(configuration.job_manifest))
    resources = manifest["spec"]["template"]["spec"]["containers"][0]["resources"]
    resources["limits"] = {name: str(amount) for name, amount in resources["limits"].items()}  # 4 is as good as "4"
    async with ApiClient() as client:
        job = client.deserialize(SimpleNamespace(data=json.dumps(manifest)), "V1Job")
        assert client.sanitize_for_serialization(job) == manifest  # no name that Kubernetes does not know
    return job


def test_a_kubernetes_job_asks_for_gpus_and_gets_its_secrets_from_a_secret() -> None:
    job = asyncio.run(rendered(gpus=4, memory_limit="320Gi"))
    (container,) = job.spec.template.spec.containers
    assert container.resources.limits == {"memory": "320Gi", "nvidia.com/gpu": "4"}
    assert container.image == "registry.example.org/lori:1"
    assert container.env_from[0].secret_ref.name == "lori"
    assert job.spec.backoff_limit == 0  # the next attempt is the driver's
    assert job.spec.template.spec.termination_grace_period_seconds == 60
    assert job.metadata.namespace == "lori"


def test_a_kubernetes_job_without_an_image_is_refused() -> None:
    template = json.loads(KUBERNETES_TEMPLATE.read_text())
    assert template["variables"]["required"] == ["image"]
    assert "default" not in template["variables"]["properties"]["image"]
