"""How much adapters get in each other's way, from their files alone: ΔW = s B A is never formed.

The paper (section 3.2) explains LoRI's merges by updates that are nearly orthogonal, since random A's are, and by
masks of different domains that hardly overlap. Both can be measured, and both have a value that chance alone would
give.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.linalg import subspace_angles
from torch import Tensor

from lori.adapters.masks import check_masks
from lori.adapters.merge_inputs import Part, factors_of, shapes_of
from lori.adapters.peft_files import check_digests, open_adapter


@dataclass(frozen=True)
class Similarity:
    """Two updates of one module: their inner product and squared Frobenius norms, and how their A's lie.

    `alignment` is the mean squared cosine of the principal angles between the row spaces of the A's: 1 for the same
    space, 0 for orthogonal ones; `chance` is its expectation for random spaces, the larger rank over d_in.
    `smallest_angle` is in radians.
    """

    inner: float
    squared_norms: tuple[float, float]
    alignment: float
    chance: float
    smallest_angle: float

    @property
    def cosine(self) -> float:
        """Of the updates as vectors; 0 where one of them is zero."""
        return cosine_of(self.inner, self.squared_norms)


@dataclass(frozen=True)
class Overlap:
    """Two masks of one module with `num_entries`: how many each keeps, and how many both keep."""

    num_kept: tuple[int, int]
    num_both: int
    num_entries: int

    @property
    def shares(self) -> list[float]:
        """Of the entries that each keeps."""
        return [kept / self.num_entries for kept in self.num_kept]

    @property
    def by_chance(self) -> float:
        """How many both would keep if one were shuffled: the mean of the hypergeometric distribution."""
        return self.num_kept[0] * self.num_kept[1] / self.num_entries

    @property
    def z(self) -> float:
        """Standard deviations of that distribution that `num_both` is above it; 0 where nothing is left to chance."""
        one, other = self.num_kept
        entries = self.num_entries
        variance = self.by_chance * (entries - one) * (entries - other) / (entries * max(entries - 1, 1))
        return (self.num_both - self.by_chance) / math.sqrt(variance) if variance else 0.0


def compare_adapters(one_dir: Path, other_dir: Path) -> dict[str, Similarity]:
    """By module, how alike two adapters' updates are; one module's factors are in memory at a time.

    With Gram matrices of rank r, <s₁B₁A₁, s₂B₂A₂> = s₁ s₂ Σ (B₁ᵀ B₂) ∘ (A₁ A₂ᵀ).

    Raises:
        ValueError: if one is damaged or does more than B A, or if they have other modules or shapes.
    """
    with ExitStack() as stack:
        adapters = [stack.enter_context(open_adapter(directory)) for directory in (one_dir, other_dir)]
        for adapter in adapters:
            check_digests(adapter)
        one, other = (Part(adapter, shapes_of(adapter), 1.0) for adapter in adapters)
        _check_shapes(one, other)
        return {module: _similarity(one, other, module) for module in one.shapes}


def _check_shapes(one: Part, other: Part) -> None:
    sizes = [{module: (out, d_in) for module, (out, _, d_in) in part.shapes.items()} for part in (one, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{one.adapter.directory} and {other.adapter.directory} have other modules or shapes: compare adapters of"
            " one base model and the same projections."
        )


def _similarity(one: Part, other: Part, module: str) -> Similarity:
    (a_one, b_one), (a_other, b_other) = (
        [factor.double().numpy() for factor in factors_of(part, module)] for part in (one, other)
    )
    scale_one, scale_other = (part.adapter.scaling(module) for part in (one, other))
    angles = subspace_angles(a_one.T, a_other.T)
    return Similarity(
        inner=scale_one * scale_other * float(((b_one.T @ b_other) * (a_one @ a_other.T)).sum()),
        squared_norms=(
            scale_one**2 * float(((b_one.T @ b_one) * (a_one @ a_one.T)).sum()),
            scale_other**2 * float(((b_other.T @ b_other) * (a_other @ a_other.T)).sum()),
        ),
        alignment=float(np.mean(np.cos(angles) ** 2)),
        chance=max(len(a_one), len(a_other)) / a_one.shape[1],
        smallest_angle=float(angles.min()),
    )


def compare_masks(
    one: Mapping[str, Bool[Tensor, "_ _"]], other: Mapping[str, Bool[Tensor, "_ _"]]
) -> dict[str, Overlap]:
    """By module, what two masks have in common.

    Raises:
        ValueError: if they are of other modules or shapes.
    """
    check_masks(one, {module: (mask.shape[0], mask.shape[1]) for module, mask in other.items()})
    return {
        module: Overlap((int(mask.sum()), int(other[module].sum())), int((mask & other[module]).sum()), mask.numel())
        for module, mask in one.items()
    }


def cosine_of(inner: float, squared_norms: tuple[float, float]) -> float:
    """The cosine of two vectors; 0 where one of them is zero."""
    length = math.sqrt(squared_norms[0] * squared_norms[1])
    return inner / length if length else 0.0


def whole_cosine(similarities: Mapping[str, Similarity]) -> float:
    """The cosine of the updates of all modules together, as one vector."""
    found = similarities.values()
    norms = (sum(each.squared_norms[0] for each in found), sum(each.squared_norms[1] for each in found))
    return cosine_of(sum(each.inner for each in found), norms)


def whole_overlap(overlaps: Mapping[str, Overlap]) -> float:
    """Entries that both masks keep, over those that chance within each module would leave to both."""
    return sum(each.num_both for each in overlaps.values()) / sum(each.by_chance for each in overlaps.values())


def measure_pair(
    one_dir: Path, other_dir: Path, *, masks: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None
) -> dict[str, Any]:
    """Two adapters and, where they were trained in some, their masks, as plain numbers.

    `cosine` and `norms` are of the whole updates, `alignment` and `chance` means over modules, `overlap` of the whole
    masks over chance or None; `modules` has each one's cosine, alignment and, where there are masks, their z and
    the shares that they keep.

    Raises:
        ValueError: as `compare_adapters` and `compare_masks`.
    """
    found, overlaps = compare_adapters(one_dir, other_dir), compare_masks(*masks) if masks else {}
    norms = [math.sqrt(sum(each.squared_norms[side] for each in found.values())) for side in (0, 1)]
    return {
        "cosine": whole_cosine(found),
        "norms": norms,
        "alignment": fmean(each.alignment for each in found.values()),
        "chance": fmean(each.chance for each in found.values()),
        "overlap": whole_overlap(overlaps) if overlaps else None,
        "modules": {
            module: {
                "cosine": each.cosine,
                "alignment": each.alignment,
                "z": overlaps[module].z if overlaps else None,
                "kept": overlaps[module].shares if overlaps else None,
            }
            for module, each in found.items()
        },
    }
