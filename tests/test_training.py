"""Training against a plain loop, and the masks' promise."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lori.config import MaskConfig
from lori.data import collate
from lori.masks import magnitude_masks
from lori.methods import LORA_B, attach, attach_trained, module_name, save_adapter
from lori.models import load_base, load_tokenizer
from lori.recipes import profile, train_config
from lori.training import mask_and_clip, summed_token_loss, train

ROWS = [
    {"input_ids": list(range(start, start + 14)), "labels": [-100] * 8 + list(range(start + 8, start + 14))}
    for start in range(10, 90, 10)
]


def config_of(name, **changes):
    return replace(
        train_config(profile("smoke"), name, "nlu", seed=0), **{"batch_size": 8, "num_epochs": 3, **changes}
    )


def fit(model, name, *, masks=None, **changes):
    return train(model, ROWS, config_of(name, **changes), tokenizer=load_tokenizer("scale"), masks=masks)


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def random_masks(model, density=0.2):
    torch.manual_seed(3)
    bs = {module_name(n): torch.rand_like(p) for n, p in model.named_parameters() if LORA_B in n}
    return magnitude_masks(bs, MaskConfig(1 - density, "model"))


def reference_steps(model, config, *, num_steps, masks):
    """The paper's step in plain torch: summed loss, mask, clip each matrix, AdamW."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=config.learning_rate, weight_decay=0.0)
    batch = collate(ROWS, pad_token_id=0)
    losses = []
    for _ in range(num_steps):
        log_probs = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        loss = 0
        for row in range(len(ROWS)):
            for t in range(8, 14):
                loss = loss - log_probs[row, t - 1, batch["labels"][row, t]]
        loss = loss / len(ROWS)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in named.items():
            if masks:
                parameter.grad *= masks[module_name(name)]
            torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["full", "lora", "dora", "lori-d", "lori-s"])
def test_training_is_the_plain_loop(name):
    config = config_of(name, learning_rate=1e-3)
    ours, reference = attach(load_base("scale"), config), attach(load_base("scale"), config)
    masks = random_masks(ours) if name == "lori-s" else None
    curve = fit(ours, name, masks=masks, learning_rate=1e-3)
    losses = reference_steps(reference, config, num_steps=3, masks=masks)
    assert [point["train/loss"] for point in curve] == pytest.approx(losses, rel=1e-4)
    expected = trained(reference)
    for parameter_name, value in trained(ours).items():
        # AdamW's first steps are ±lr whatever the gradient's size, so a gradient near 0 may take either sign
        agree = (value - expected[parameter_name]).abs() < 1e-4
        assert agree.float().mean() > 0.99, parameter_name


def test_entries_outside_the_mask_never_move():
    model = attach(load_base("scale"), config_of("lori-s"))
    masks = random_masks(model)
    fit(model, "lori-s", masks=masks)
    for name, b in trained(model).items():
        mask = masks[module_name(name)]
        assert torch.equal(b[~mask], torch.zeros_like(b[~mask]))
    moved = sum(int((b != 0).sum()) for b in trained(model).values())
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks.values())


def test_continual_entries_outside_the_mask_keep_their_first_values_bit_for_bit(tmp_path):
    first = attach(load_base("scale"), config_of("lori-s", domain="safety"))
    fit(first, "lori-d", domain="safety")
    save_adapter(first, tmp_path, config_of("lori-s"))
    second = attach_trained(load_base("scale"), tmp_path, config_of("lori-s"))
    masks = random_masks(second)
    before = trained(second)
    fit(second, "lori-s", masks=masks)
    for name, after in trained(second).items():
        mask = masks[module_name(name)]
        assert torch.equal(after[~mask], before[name][~mask])
        assert not torch.equal(after[mask], before[name][mask])


def test_what_is_frozen_never_moves():
    model = attach(load_base("scale"), config_of("lori-d"))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    fit(model, "lori-d")
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    results = []
    for seed in (0, 0, 1):
        model = attach(load_base("scale"), config_of("lori-d", batch_size=3, seed=seed))
        fit(model, "lori-d", batch_size=3, seed=seed)
        results.append(trained(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_the_last_partial_batch_trains_too():
    model = attach(load_base("scale"), config_of("lori-d"))
    curve = fit(model, "lori-d", batch_size=3, num_epochs=2)  # 8 rows: batches of 3, 3 and 2, twice
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]


def test_the_loss_sums_tokens_and_averages_sequences():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[-100, 3, 1, 2], [-100, -100, -100, 5]])
    first = F.cross_entropy(logits[0, :3], labels[0, 1:], reduction="sum")
    second = F.cross_entropy(logits[1, 2:3], labels[1, 3:], reduction="sum")
    torch.testing.assert_close(summed_token_loss(logits, labels), (first + second) / 2)


def test_each_matrix_is_clipped_by_itself():
    big, small = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    big.grad, small.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    norms = mask_and_clip({"big": big, "small": small}, {})
    assert norms.tolist() == pytest.approx([50.0, 0.5])
    torch.testing.assert_close(big.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(small.grad, torch.tensor([0.3, 0.4]))


def test_the_mask_comes_before_the_clip():
    b = torch.nn.Parameter(torch.zeros(2))
    b.grad = torch.tensor([30.0, 0.4])
    mask_and_clip({"b": b}, {"b": torch.tensor([False, True])})
    assert b.grad.tolist() == pytest.approx([0.0, 0.4])  # clipping first would have left 0.013


def test_a_mask_of_another_rank_is_refused():
    model = attach(load_base("scale"), config_of("lori-s"))
    other = attach(load_base("scale"), config_of("lori-s", rank=3, alpha=6))
    with pytest.raises(ValueError, match="made at another rank"):
        fit(model, "lori-s", masks=random_masks(other))


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step():
    model = attach(load_base("scale"), config_of("full"))
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="at step 1"):
        fit(model, "full")
