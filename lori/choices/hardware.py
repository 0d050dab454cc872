"""What a study has to compute with: one row a kind of GPU."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lori.config import TrainRuntime

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU: bytes, dense FLOP/s of matrix products in bf16 and in fp32 (not TF32), bytes/s of its memory."""

    memory: int
    bf16_flops: float
    fp32_flops: float
    bandwidth: float


# Memory is what torch reports ("total capacity"), which is less than what the name says; the rest is from NVIDIA's
# data sheets, of the SXM parts and without sparsity. `cpu` is no machine in particular: one core, 16 GB.
GPUS = {
    "h200": Gpu(int(139.7 * GIB), 989e12, 67e12, 4.8e12),
    "h100": Gpu(int(79.1 * GIB), 989e12, 67e12, 3.35e12),
    "a100-80gb": Gpu(int(79.1 * GIB), 312e12, 19.5e12, 2.04e12),
    "a100-40gb": Gpu(int(39.4 * GIB), 312e12, 19.5e12, 1.56e12),
    "l40s": Gpu(int(44.3 * GIB), 362e12, 91.6e12, 0.864e12),
    "rtx-4090": Gpu(int(23.6 * GIB), 165e12, 82.6e12, 1.01e12),
    "cpu": Gpu(16 * 10**9, 0.1e12, 0.1e12, 20e9),
}

if TYPE_CHECKING:
    GpuName = str
else:
    GpuName = Literal[*GPUS]


@dataclass(frozen=True)
class Hardware:
    """What a flow run has to compute with, and how a training is to fit it.

    With a `gpu`, a row of `GPUS`, cells that can't fit it are refused before anything is computed. `num_gpus` train
    one adapter together. The rest is `TrainRuntime`'s.
    """

    gpu: GpuName | None = None
    num_gpus: int = 1
    micro_batch_tokens: int = TrainRuntime.micro_batch_tokens
    gradient_checkpointing: bool = TrainRuntime.gradient_checkpointing
