"""Which A an adapter gets: one per domain and seed, shared or fresh where that is asked for."""

import pytest
import torch

from helpers.smoke_adapters import config_of
from lori.adapters.attach import (
    attach,
    attach_trained,
    save_adapter,
)
from lori.adapters.peft_files import LORA_A
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS

SCALE = BASE_MODELS["scale"]


def factor_as(model):
    return {name: p for name, p in model.named_parameters() if LORA_A in name}


def test_a_is_one_per_domain_and_seed_and_the_same_for_lori_d_and_lori_s():
    dense, sparse = (factor_as(attach(load_base(SCALE), config_of(name))) for name in ("lori-d", "lori-s"))
    other_domain = factor_as(attach(load_base(SCALE), config_of("lori-d", domain="math")))
    other_seed = factor_as(attach(load_base(SCALE), config_of("lori-d", seed=1)))
    for name, a in dense.items():
        assert torch.equal(a, sparse[name])
        assert not torch.equal(a, other_domain[name])
        assert not torch.equal(a, other_seed[name])
    assert len({a.flatten()[0].item() for a in dense.values()}) == len(dense), "modules must not share an A"


def test_shared_a_is_one_a_for_all_domains():
    first, second = (
        factor_as(attach(load_base(SCALE), config_of("lori-d", domain=domain, shared_a=True)))
        for domain in ("nlu", "math")
    )
    assert all(torch.equal(a, second[name]) for name, a in first.items())


def test_fresh_a_is_another_a_for_the_sparse_method_than_for_the_dense_one():
    dense, sparse, default = (
        factor_as(attach(load_base(SCALE), config_of(name, fresh_a=fresh)))
        for name, fresh in (("lori-d", True), ("lori-s", True), ("lori-d", False))
    )
    assert all(torch.equal(a, default[name]) for name, a in dense.items())
    assert not any(torch.equal(a, dense[name]) for name, a in sparse.items())


@pytest.mark.parametrize("name", ["lori-d", "lori-s"])
def test_set_adapter_and_is_trainable_leave_a_frozen(name, tmp_path):
    model = attach(load_base(SCALE), config_of(name))
    model.set_adapter("default")
    save_adapter(model, tmp_path, config_of(name))
    for trained in (model, attach_trained(load_base(SCALE), tmp_path, config_of(name))):
        trained.set_adapter("default")
        assert not any(a.requires_grad for a in factor_as(trained).values())
        assert any(parameter.requires_grad for parameter in trained.parameters())
