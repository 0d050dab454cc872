"""Two processes give what one gives: with the model on both (DDP), and with a share of the base on each (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.documents import example_in
from helpers.train_worker import fit
from tasks.machine import ROOT


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What `train_worker.py` wrote under torchrun, over gloo."""
    out = tmp_path_factory.mktemp("two")
    (out / "example.py").write_text(example_in("README.md", "example"))
    worker = str(ROOT / "tests" / "helpers" / "train_worker.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    # Port 0: a free one, and on loopback
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    done = subprocess.run(
        [*launch, *rendezvous, worker, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    for name in ("lora", "lori-s"):
        fit(out / name, name)
    return out


def adapter_of(directory):
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def curve_of(directory, name):
    return [point[name] for point in json.loads((directory / "curve.json").read_text())]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["lora", "lori-s"])
def test_two_processes_train_what_one_trains(name, how, one_process, two_processes):
    alone, together = one_process / name, two_processes / f"{name}-{how}"
    for curve in ("train/loss", "train/gradient_norm"):
        assert curve_of(together, curve) == pytest.approx(curve_of(alone, curve), rel=1e-5)
    expected = adapter_of(alone)
    for tensor, value in adapter_of(together).items():
        # Sums are in another order; a gradient of almost nothing may then turn AdamW's step of lr = 1e-3 around
        close = (value - expected[tensor]).abs() < 2e-5
        assert close.float().mean() > 0.999, tensor


def test_the_readmes_example_runs_on_two_processes(two_processes):
    assert (two_processes / "adapters" / "merged" / "adapter_model.safetensors").exists()


def test_a_training_on_a_sharded_base_resumes_with_the_same_bits(two_processes):
    undisturbed, resumed = two_processes / "lori-s-fsdp", two_processes / "lori-s-resumed"
    tensors = Path("adapter", "adapter_model.safetensors")
    assert (resumed / tensors).read_bytes() == (undisturbed / tensors).read_bytes()
    assert curve_of(resumed, "train/loss") == curve_of(undisturbed, "train/loss")
