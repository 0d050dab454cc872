"""What goes into a merge of adapters: their files, checked before anything is computed, read a module at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from lori.adapters.peft_files import LORA_A, LORA_B, PREFIX, AdapterFile, open_adapter
from lori.adapters.peft_settings import SETTINGS_FILE, read_settings
from lori.base_models.hub_files import open_tensors

A, B = f"{LORA_A}weight", f"{LORA_B}weight"
Pair = tuple[Float[Tensor, "_rank _d_in"], Float[Tensor, "_d_out _rank"]]  # a, b
# Settings with which b @ a is not all that an adapter does: bias apart, and PEFT's own list of LoRA's variants
BEYOND_FACTORS = ("lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices", "use_qalora")
VARIANTS = tuple(field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant"))
# Copies of base weights, which PEFT saves when a vocabulary was resized: the authors add a <PAD> token
BASE_COPIES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Part:
    """One adapter of a merge. `shapes` has (d_out, rank, d_in) of its modules; `norm_scale` multiplies its update."""

    adapter: AdapterFile
    shapes: Mapping[str, tuple[int, int, int]]
    weight: float
    norm_scale: float = 1.0

    @property
    def rank(self) -> int:
        """The largest of its modules' ranks (rank_pattern), as in `_check_add_weighted_adapter`."""
        return max(rank for _, rank, _ in self.shapes.values())


def check_directories(adapter_dirs: Sequence[Path], base_model: str) -> None:
    """Adapters or whole models, undamaged, and of `base_model` as far as their settings say.

    Raises:
        ValueError: if they are not.
    """
    bases = {}
    for directory in adapter_dirs:
        if not (directory / SETTINGS_FILE).exists() and not (directory / "config.json").exists():
            raise ValueError(f"{directory} holds neither an adapter ({SETTINGS_FILE}) nor a model (config.json).")
        for path in directory.glob("*.safetensors"):
            with open_tensors(path):
                pass  # else a truncated file is only noticed after its base model was loaded
        if (directory / SETTINGS_FILE).exists():
            bases.setdefault(read_settings(directory).get("base_model_name_or_path"), directory)
    if bases.keys() - {base_model}:
        listed = ", ".join(f"{directory} of {base!r}" for base, directory in bases.items())
        raise ValueError(
            f"A merge for {base_model!r} of adapters of different base models: {listed}. Merge adapters of one; if it"
            f" only has several names, make base_model_name_or_path the same in each {SETTINGS_FILE}."
        )


def shapes_of(adapter: AdapterFile) -> dict[str, tuple[int, int, int]]:
    """(d_out, rank, d_in) of every module, from the header of its file.

    Raises:
        ValueError: if the file or its settings hold more than factors, or an A without a B that fits.
    """
    settings, directory = adapter.settings, adapter.directory
    beyond = [name for name in (*BEYOND_FACTORS, *VARIANTS) if settings.get(name)]
    beyond += ["bias"] if settings.get("bias", "none") != "none" else []
    beyond += [name for name in adapter.extras if not name.endswith(BASE_COPIES)]
    if beyond:
        raise ValueError(
            f"{directory} has {', '.join(beyond[:3])}, which a merge of factors would lose: train adapters without."
        )
    factors = set(adapter.file.keys()) - set(adapter.extras)
    odd = sorted(factors ^ {f"{PREFIX}{module}{end}" for module in adapter.modules for end in (A, B)})
    if odd:
        raise ValueError(f"{directory} is damaged: {odd[0]} lacks its other factor. Save or download it again.")
    shapes = {}
    for module in adapter.modules:
        a, b = (adapter.file.get_slice(f"{PREFIX}{module}{end}").get_shape() for end in (A, B))
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ValueError(f"{directory}: A {a} and B {b} of {module} do not fit together as matrices.")
        if a[0] != adapter.rank(module):
            raise ValueError(f"{directory}: {module} has rank {a[0]}, its settings say {adapter.rank(module)}.")
        shapes[module] = (b[0], a[0], a[1])
    return shapes


def factors_of(part: Part, module: str) -> Pair:
    """A and B in fp32, the norm's scale shared between them.

    Raises:
        ValueError: for an entry that is not finite.
    """
    a, b = part.adapter.a(module).float(), part.adapter.b(module).float()
    for factor in (a, b):
        if not all(bound.isfinite() for bound in factor.aminmax()):  # one pass, isfinite: several
            raise ValueError(f"{part.adapter.directory}: {module} has NaN or infinite entries. Train it again.")
    root = math.sqrt(part.norm_scale)
    return (a, b) if root == 1 else (root * a, root * b)


def norm_of(part: Part) -> float:
    """‖s B A‖ over all modules together, from ‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ)."""
    total = 0.0
    for module in part.shapes:
        a, b = (factor.double() for factor in factors_of(part, module))
        total += part.adapter.scaling(module) ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(total)


def update_norm(adapter_dir: Path) -> float:
    """The Frobenius norm of all of an adapter's ΔW together.

    Raises:
        ValueError: if it is damaged or does more than B A.
    """
    with open_adapter(adapter_dir) as adapter:
        return norm_of(Part(adapter, shapes_of(adapter), 1.0))
