"""What LoRI does at the shapes of Llama-3-8B, rank 32, without the model: optimizer step, mask, merge, compact file.

python -m benchmarks.files      # 2 minutes, 4 GB of memory and 3 GB of disk; writes benchmarks/files.json
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import goal, interleave, ratio, report
from lori.adapters.checked_files import digest
from lori.adapters.compact import expand_compact, save_compact
from lori.adapters.layer import FlatValues, SparseB, projection_a
from lori.adapters.masks import magnitude_masks, num_kept, save_masks
from lori.adapters.merging import merge
from lori.adapters.peft_files import write_adapter
from lori.config import MaskConfig, MergeConfig
from lori.training.trainer import clip_each

RANK, NUM_LAYERS, ROUNDS = 32, 32, 5
PROJECTIONS = {  # (d_out, d_in) of Llama-3-8B and Mistral-7B
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
SHAPES = {f"model.layers.{layer}.{name}": shape for layer in range(NUM_LAYERS) for name, shape in PROJECTIONS.items()}
MASK = MaskConfig(0.9, "model")


def random_bs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {module: 3e-3 * torch.randn(d_out, RANK, generator=generator) for module, (d_out, _) in SHAPES.items()}


def masked_dense_step(bs: dict[str, Tensor], masks: dict[str, Tensor]) -> Callable[[], None]:
    """The authors': dense gradients times masks, a clip and an AdamW for each matrix."""
    parameters = {module: nn.Parameter(b.clone()) for module, b in bs.items()}
    optimizers = {module: torch.optim.AdamW([b], lr=5e-4, weight_decay=0.0) for module, b in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 1e-3)

    def step() -> None:
        for module, b in parameters.items():
            assert b.grad is not None
            b.grad *= masks[module]
            torch.nn.utils.clip_grad_norm_([b], 1.0)
            optimizers[module].step()

    return step


def sparse_step(bs: dict[str, Tensor], masks: dict[str, Tensor]) -> Callable[[], None]:
    """Ours: the kept values as one vector."""
    flat = FlatValues([SparseB(bs[module] * mask, mask) for module, mask in masks.items()], keep_dense=None)
    optimizer = torch.optim.AdamW([flat.values], lr=5e-4, weight_decay=0.0, fused=True)
    flat.lend_gradients()
    for layer in flat.layers:
        assert layer.values.grad is not None
        layer.values.grad.fill_(1e-3)

    def step() -> None:
        clip_each(flat.gradients())
        optimizer.step()
        flat.scatter()

    return step


def write_random_adapter(directory: Path, key: str, bs: dict[str, Tensor]) -> Path:
    """An adapter of LoRI at full size."""
    a = {module: projection_a(key, module, (RANK, d_in)) for module, (_, d_in) in SHAPES.items()}
    tensors = {f"base_model.model.{module}.lora_A.weight": a[module] for module in SHAPES}
    tensors |= {f"base_model.model.{module}.lora_B.weight": bs[module] for module in SHAPES}
    targets = sorted({module.rsplit(".", 1)[1] for module in SHAPES})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets, "use_dora": False}
    metadata = {"a_key": key, "a_sha256": digest(a[module] for module in sorted(a))}
    write_adapter(directory, tensors, {**settings, "base_model_name_or_path": "llama-3-8b"}, metadata)
    return directory


def file_goals(root: Path, bs: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[list[dict], dict[str, float]]:
    """Sizes and seconds of merge and compact file."""
    adapters = [write_random_adapter(root / str(i), f"{i}/nlu", bs if i == 0 else random_bs(i)) for i in range(4)]
    config = MergeConfig("llama-3-8b", "concat", (0.4,) * 4, density=1.0, seed=0, match_norms=False)
    sparse = write_random_adapter(
        root / "sparse", "0/nlu", {module: bs[module] * mask for module, mask in masks.items()}
    )
    save_masks(masks, sparse)
    compact = root / "compact.safetensors"
    save_compact(sparse, compact, dtype="bfloat16")
    works = {
        "merge": lambda: merge(adapters, config, root / "merged"),
        "save compact": lambda: save_compact(sparse, compact, dtype="bfloat16"),
        "expand compact": lambda: expand_compact(compact, Path(tempfile.mkdtemp(dir=root))),
    }
    seconds = {name: min(times) for name, times in interleave(works, 3).items()}
    return [
        goal("four adapters concat-merged, seconds", seconds["merge"], "≤", 3.0),
        goal("compact file, MB", compact.stat().st_size / 1e6, "≤", 14.4),
    ], seconds


def main() -> None:
    torch.set_num_threads(1)
    bs = random_bs(0)
    masks = magnitude_masks(bs, MASK)
    steps = {"masked dense": masked_dense_step(bs, masks), "kept values": sparse_step(bs, masks)}
    step_ratio = ratio(interleave(steps, ROUNDS), "kept values", "masked dense")
    del steps
    mask_seconds = {}
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        mask_seconds[num_threads] = min(interleave({"mask": partial(magnitude_masks, bs, MASK)}, ROUNDS)["mask"])
    torch.set_num_threads(1)
    goals = [
        goal("optimizer step / masked dense", step_ratio, "≤", 1 / 50),
        goal(
            f"mask of {sum(b.numel() for b in bs.values()):,} entries, 2 threads, seconds", mask_seconds[2], "≤", 0.3
        ),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        more, seconds = file_goals(Path(scratch), bs, masks)
    report("files", goals + more, kept=num_kept(masks), seconds={**seconds, "mask, 1 thread": mask_seconds[1]})


if __name__ == "__main__":
    main()
