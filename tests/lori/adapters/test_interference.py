"""Interference from files: what dense updates and scipy's distributions say, and where chance is, it is found."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from helpers.merge_inputs import make_adapter, products, written
from lori.adapters.interference import (
    Overlap,
    compare_adapters,
    compare_masks,
    measure_pair,
    whole_cosine,
    whole_overlap,
)
from lori.adapters.layer import projection_a
from lori.adapters.merge_inputs import update_norm

GENERATOR = torch.Generator().manual_seed(0)


def random_factors(shapes: dict[str, tuple[int, int, int]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """a (rank, in) and b (out, rank) by module."""
    return {
        module: (torch.randn(rank, d_in, generator=GENERATOR), torch.randn(out, rank, generator=GENERATOR))
        for module, (out, rank, d_in) in shapes.items()
    }


SHAPES = {"layers.0.q": (20, 4, 30), "layers.1.q": (10, 4, 50)}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters that have something in common, of ranks 4 and 6."""
    one = random_factors(SHAPES)
    other = random_factors({module: (out, 6, d_in) for module, (out, _, d_in) in SHAPES.items()})
    for module, (a, b) in other.items():
        a[:2], b[:, :2] = one[module][0][:2], one[module][1][:, :2]
    return written(tmp_path / "one", one), written(tmp_path / "other", other)


def test_cosine_and_norms_are_those_of_the_dense_updates(pair: tuple[Path, Path]) -> None:
    found = compare_adapters(*pair)
    one, other = products(pair[0]), products(pair[1])
    for module, similarity in found.items():
        expected = torch.nn.functional.cosine_similarity(one[module].flatten(), other[module].flatten(), dim=0)
        assert similarity.cosine == pytest.approx(float(expected), abs=1e-6)
        norms = [float(dense[module].norm()) for dense in (one, other)]
        assert [math.sqrt(norm) for norm in similarity.squared_norms] == pytest.approx(norms, rel=1e-6)
    flat = [torch.cat([dense[module].flatten() for module in found]) for dense in (one, other)]
    assert whole_cosine(found) == pytest.approx(float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), abs=1e-6)


def test_the_norm_of_an_update_is_that_of_its_dense_matrices_together(pair: tuple[Path, Path]) -> None:
    for directory in pair:
        dense = torch.cat([update.flatten() for update in products(directory).values()])
        assert update_norm(directory) == pytest.approx(float(dense.norm()), rel=1e-6)


def test_alignment_is_that_of_the_projections_onto_both_row_spaces(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """tr(P₁ P₂) over the smaller rank is the mean squared cosine of the principal angles; 2 of 4 rows are shared."""
    from lori.adapters.peft_files import open_adapter

    found = compare_adapters(*pair)
    with open_adapter(pair[0]) as one, open_adapter(pair[1]) as other:
        for module, similarity in found.items():
            projections = [torch.linalg.pinv(file.a(module)) @ file.a(module) for file in (one, other)]
            expected = float(torch.trace(projections[0] @ projections[1])) / 4
            assert similarity.alignment == pytest.approx(expected, abs=1e-5)
            assert similarity.smallest_angle == pytest.approx(0.0, abs=1e-5)
            assert similarity.chance == 6 / SHAPES[module][2]


def test_an_adapter_is_like_itself_and_not_like_one_at_right_angles(tmp_path: Path) -> None:
    factors = random_factors({"q": (8, 2, 12)})
    one = written(tmp_path / "one", factors)
    same = compare_adapters(one, one)["q"]
    assert (same.cosine, same.alignment) == pytest.approx((1.0, 1.0))
    a, b = factors["q"]
    null = torch.from_numpy(np.linalg.svd(a.numpy())[2][2:4])  # rows that A takes to zero
    other = compare_adapters(one, written(tmp_path / "other", {"q": (null.contiguous(), b)}))["q"]
    assert (other.cosine, other.alignment) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert other.smallest_angle == pytest.approx(math.pi / 2, abs=1e-5)


def test_frozen_as_of_different_domains_lie_as_chance_has_it(tmp_path: Path) -> None:
    """Over 40 modules of rank 8 in 256 dimensions, the mean alignment is within 5 % of 8 / 256."""
    modules = [f"layers.{n}.q" for n in range(40)]
    sides = []
    for domain in ("nlu", "math"):
        factors = {m: (projection_a(f"0/{domain}", m, (8, 256)), torch.ones(4, 8)) for m in modules}
        sides.append(written(tmp_path / domain, factors))
    found = compare_adapters(*sides)
    mean = sum(similarity.alignment for similarity in found.values()) / len(found)
    assert mean == pytest.approx(8 / 256, rel=0.05)
    assert {similarity.chance for similarity in found.values()} == {8 / 256}


def test_real_adapters_are_compared_and_others_refused(tmp_path: Path) -> None:
    nlu, math_ = (make_adapter(tmp_path / domain, "lori-d", domain) for domain in ("nlu", "math"))
    assert abs(whole_cosine(compare_adapters(nlu, math_))) < 0.05
    with pytest.raises(ValueError, match="have other modules or shapes: compare adapters of one base model"):
        compare_adapters(nlu, written(tmp_path / "foreign", random_factors({"q": (8, 2, 12)})))
    with pytest.raises(ValueError, match="use_dora"):
        compare_adapters(nlu, make_adapter(tmp_path / "dora", "dora", "nlu"))


def test_overlap_by_chance_is_the_hypergeometric_distributions() -> None:
    overlap = Overlap((120, 300), 50, 1000)
    distribution = hypergeom(1000, 120, 300)
    assert overlap.by_chance == pytest.approx(distribution.mean())
    assert overlap.z == pytest.approx((50 - distribution.mean()) / distribution.std())
    assert Overlap((0, 10), 0, 10).z == 0.0


def test_masks_are_compared_entry_by_entry() -> None:
    one = {"q": torch.tensor([[True, True], [False, False]]), "v": torch.tensor([[True, False]])}
    other = {"q": torch.tensor([[True, False], [True, False]]), "v": torch.tensor([[True, False]])}
    found = compare_masks(one, other)
    assert found == {"q": Overlap((2, 2), 1, 4), "v": Overlap((1, 1), 1, 2)}
    assert whole_overlap(found) == pytest.approx((1 + 1) / (1.0 + 0.5))
    with pytest.raises(ValueError, match="The mask has 1 modules, the adapter 2"):
        compare_masks({"q": one["q"]}, other)


def test_a_pair_is_told_in_plain_numbers(pair: tuple[Path, Path]) -> None:
    masks = {module: torch.rand(out, 4, generator=GENERATOR) > 0.5 for module, (out, _, _) in SHAPES.items()}
    told = measure_pair(*pair, masks=(masks, masks))
    found = compare_adapters(*pair)
    assert told["cosine"] == whole_cosine(found)
    assert told["norms"][0] == pytest.approx(
        float(torch.cat([m.flatten() for m in products(pair[0]).values()]).norm())
    )
    assert told["chance"] == pytest.approx((6 / 30 + 6 / 50) / 2)
    # All that one keeps the other keeps: the multiple of chance is 1 / density, here about 2
    kept, entries = [sum(f(m) for m in masks.values()) for f in (torch.count_nonzero, torch.numel)]
    assert told["overlap"] == pytest.approx(float(entries / kept), rel=0.05)
    assert set(told["modules"]) == set(SHAPES)
    assert measure_pair(*pair, masks=None)["overlap"] is None
