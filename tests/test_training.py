"""Training against a plain loop, and the masks' promise."""

import time
from dataclasses import replace
from itertools import chain, count
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F

from lori.adapters.attach import attach, attach_trained, save_adapter, sparsify
from lori.adapters.attached import lora_layers
from lori.adapters.masks import magnitude_masks
from lori.adapters.peft_files import LORA_B, module_name
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig, TrainRuntime
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config
from lori.training.batches import collate, plan_micro_batches, plan_steps
from lori.training.trainer import clip_each, summed_token_loss, train

SCALE = BASE_MODELS["scale"]

ROWS = [
    {"input_ids": list(range(start, start + 14)), "labels": [-100] * 8 + list(range(start + 8, start + 14))}
    for start in range(10, 90, 10)
]


def config_of(name, **changes):
    base = train_config(profile("smoke"), "lora", "nlu", seed=0)
    return replace(base, **{"method": name, "batch_size": 8, "num_epochs": 3, **changes})


def fit(model, name, *, rows=ROWS, runtime=None, **changes):
    return train(model, rows, config_of(name, **changes), tokenizer=load_tokenizer(SCALE), runtime=runtime)


def trained(model):
    """What trained, dense: B's by module name, other parameters by their own."""
    bs = {module: layer.lora_B["default"].weight.detach().clone() for module, layer in lora_layers(model).items()}
    others = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and LORA_B not in n}
    return {**bs, **others}


def some_masks(model, density=0.2):
    torch.manual_seed(3)
    bs = {module: torch.rand(layer.lora_B["default"].weight.shape) for module, layer in lora_layers(model).items()}
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
    ours, reference = attach(load_base(SCALE), config), attach(load_base(SCALE), config)
    masks = some_masks(ours) if name == "lori-s" else None
    if masks:
        sparsify(ours, masks)
    curve = fit(ours, name, learning_rate=1e-3)
    losses = reference_steps(reference, config, num_steps=3, masks=masks)
    assert [point["train/loss"] for point in curve] == pytest.approx(losses, rel=1e-4)
    expected = trained(reference)
    for parameter_name, value in trained(ours).items():
        # AdamW's first steps are ±lr whatever the gradient's size, so a gradient near 0 may take either sign
        agree = (value - expected[parameter_name]).abs() < 1e-4
        assert agree.float().mean() > 0.99, parameter_name


def test_ten_steps_of_a_sparse_b_are_ten_of_a_masked_dense_one():
    """Of B's that start off zero, as in continual learning: from zero, the first signs are rounding's."""
    config = config_of("lori-s", learning_rate=1e-3, num_epochs=10)
    ours, reference = (attach(load_base(SCALE), config) for _ in range(2))
    for model in (ours, reference):
        torch.manual_seed(7)
        for layer in lora_layers(model).values():
            layer.lora_B["default"].weight.data.normal_(0, 0.02)
    masks = some_masks(ours)
    curve = fit(sparsify(ours, masks), "lori-s", learning_rate=1e-3, num_epochs=10)
    losses = reference_steps(reference, config, num_steps=10, masks=masks)
    assert [point["train/loss"] for point in curve] == pytest.approx(losses, rel=1e-5)
    expected = trained(reference)
    for module, value in trained(ours).items():
        torch.testing.assert_close(value, expected[module], atol=2e-5, rtol=0)  # steps are of 1e-3


def test_entries_outside_the_mask_never_move():
    model = attach(load_base(SCALE), config_of("lori-s"))
    masks = some_masks(model)
    fit(sparsify(model, masks), "lori-s")
    for module, b in trained(model).items():
        assert torch.equal(b[~masks[module]], torch.zeros_like(b[~masks[module]]))
    moved = sum(int((b != 0).sum()) for b in trained(model).values())
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks.values())


def test_continual_entries_outside_the_mask_keep_their_first_values_bit_for_bit(tmp_path):
    first = attach(load_base(SCALE), config_of("lori-d", domain="safety"))
    fit(first, "lori-d", domain="safety")
    save_adapter(first, tmp_path, config_of("lori-d"))
    second = attach_trained(load_base(SCALE), tmp_path, config_of("lori-s"))
    masks = some_masks(second)
    before = trained(second)
    fit(sparsify(second, masks), "lori-s")
    for module, after in trained(second).items():
        mask = masks[module]
        assert torch.equal(after[~mask], before[module][~mask])
        assert not torch.equal(after[mask], before[module][mask])


def test_what_is_frozen_never_moves():
    model = attach(load_base(SCALE), config_of("lori-d"))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    fit(model, "lori-d")
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    results = []
    for seed in (0, 0, 1):
        model = attach(load_base(SCALE), config_of("lori-d", batch_size=3, seed=seed))
        fit(model, "lori-d", batch_size=3, seed=seed)
        results.append(trained(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_the_last_partial_batch_trains_too():
    model = attach(load_base(SCALE), config_of("lori-d"))
    curve = fit(model, "lori-d", batch_size=3, num_epochs=2)  # 8 rows: batches of 3, 3 and 2, twice
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]


def test_the_loss_sums_tokens_of_labels_alone():
    model = load_base(SCALE)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 3, 1, 2]}, {"input_ids": [9, 10], "labels": [-100, 4]}]
    batch = collate(rows, pad_token_id=0)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8]])).logits[0], model(torch.tensor([[9, 10]])).logits[0]
        first = F.cross_entropy(logits[0][:3], torch.tensor([3, 1, 2]), reduction="sum")
        second = F.cross_entropy(logits[1][:1], torch.tensor([4]), reduction="sum")
        torch.testing.assert_close(summed_token_loss(model, batch), first + second)


def test_no_rows_at_all_have_no_loss():
    """What a process computes whose share of the last batch is empty."""
    model = attach(load_base(SCALE), config_of("lori-d"))
    loss = summed_token_loss(model, collate([], pad_token_id=0))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_each_matrix_is_clipped_by_itself():
    big, small = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    assert clip_each([big, small]).tolist() == pytest.approx([50.0, 0.5])
    torch.testing.assert_close(big, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(small, torch.tensor([0.3, 0.4]))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    steps = plan_steps(10, config_of("lori-d", batch_size=4, num_epochs=2))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = [*chain(*steps[:3])], [*chain(*steps[3:])]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


LENGTHS = [5, 9, 2, 7, 7, 3, 40]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1, 15, 1000])
def test_micro_batches_share_a_batch_out_in_parts_of_like_length(num_processes, max_tokens):
    batch = [6, 0, 1, 3, 4, 5]
    shares = [
        plan_micro_batches(LENGTHS, batch, max_tokens=max_tokens, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    assert sorted(row for share in shares for part in share for row in part) == sorted(batch)
    assert len({len(share) for share in shares}) == 1, "collectives need as many parts on every process"
    for share in shares:
        lengths = [LENGTHS[row] for part in share for row in part]
        assert lengths == sorted(lengths, reverse=True)
        assert all(len(part) <= 1 or len(part) * LENGTHS[part[0]] <= max_tokens for part in share)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    lengths = (14, 9, 12, 10, 14, 11, 9, 13)
    rows = [{name: ids[:length] for name, ids in row.items()} for row, length in zip(ROWS, lengths, strict=True)]
    results = []
    for micro_batch_tokens in (10_000, 30, 1):
        model = attach(load_base(SCALE), config_of("lori-d"))
        curve = fit(model, "lori-d", rows=rows, runtime=TrainRuntime(micro_batch_tokens), learning_rate=1e-3)
        results.append(([point["train/loss"] for point in curve], trained(model)))
    for losses, values in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        agree = [(value - results[0][1][module]).abs() < 1e-4 for module, value in values.items()]
        assert torch.cat([a.flatten() for a in agree]).float().mean() > 0.99


class Killed(RuntimeError):
    """Stands for the end of the process."""


def dying(*, after):
    """The loss function of a process that ends when it is called once more than `after` times."""
    calls = iter(range(after))

    def loss(model, batch):
        if next(calls, None) is None:
            raise Killed
        return summed_token_loss(model, batch)

    return loss


@pytest.mark.parametrize("name", ["lora", "lori-d", "lori-s", "full"])
def test_a_resumed_training_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path, monkeypatch):
    def run(checkpoint_dir):
        model = attach(load_base(SCALE), config_of(name))
        if name == "lori-s":
            sparsify(model, some_masks(model))
        runtime = TrainRuntime(micro_batch_tokens=14, checkpoint_dir=checkpoint_dir, checkpoint_every=2)
        return model, fit(model, name, batch_size=3, runtime=runtime)  # 8 rows, one a part: steps of 3, 3, 2 parts

    undisturbed, curve = run(None)
    place = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr("lori.training.trainer.summed_token_loss", dying(after=15))  # in the middle of the sixth step
        with pytest.raises(Killed):
            run(str(place))
    assert sorted(path.name for path in place.glob("checkpoint-*")) == ["checkpoint-4"], "only the newest is kept"
    resumed, resumed_curve = run(str(place))
    expected = trained(undisturbed)
    assert all(torch.equal(value, expected[parameter]) for parameter, value in trained(resumed).items())
    assert without_times(resumed_curve) == without_times(curve)


def without_times(curve):
    of_the_machine = ("time_ms", "train/tokens_per_second", "train/memory_mb")
    return [{name: value for name, value in point.items() if name not in of_the_machine} for point in curve]


def test_the_curve_has_the_rate_of_tokens_and_the_peak_of_the_memory(monkeypatch):
    seconds = count()  # between two points of the curve there is one
    monkeypatch.setattr("lori.training.trainer.time", SimpleNamespace(time=time.time, monotonic=seconds.__next__))
    resident = psutil.Process().memory_info().rss / 1e6
    curve = fit(attach(load_base(SCALE), config_of("lora")), "lora", batch_size=len(ROWS))
    num_tokens = sum(len(row["input_ids"]) for row in ROWS)
    assert [point["train/tokens_per_second"] for point in curve] == [num_tokens] * len(curve)
    assert all(point["train/memory_mb"] >= resident for point in curve)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    runtime = TrainRuntime(checkpoint_dir=str(tmp_path), checkpoint_every=1)
    fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", runtime=runtime)
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", rows=ROWS[:-1], runtime=runtime)
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", learning_rate=0.5, runtime=runtime)


def test_checkpoints_of_another_start_are_refused(tmp_path):
    runtime = TrainRuntime(checkpoint_dir=str(tmp_path), checkpoint_every=1)
    first = attach(load_base(SCALE), config_of("lori-s"))
    masks = some_masks(first)
    fit(sparsify(first, masks), "lori-s", runtime=runtime)
    other_mask = {module: ~mask for module, mask in masks.items()}
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(
            sparsify(attach(load_base(SCALE), config_of("lori-s")), other_mask),
            "lori-s",
            runtime=runtime,
        )
    continued = attach(load_base(SCALE), config_of("lori-s", domain="safety"))  # as attach_trained: another A
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(sparsify(continued, masks), "lori-s", runtime=runtime)


def test_a_damaged_note_beside_checkpoints_is_named(tmp_path):
    (tmp_path / "training.json").write_text("")
    with pytest.raises(ValueError, match=r"training.json is damaged"):
        fit(
            attach(load_base(SCALE), config_of("lori-d")),
            "lori-d",
            runtime=TrainRuntime(checkpoint_dir=str(tmp_path)),
        )


def test_lori_s_without_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"lori-s trains inside a mask"):
        fit(attach(load_base(SCALE), config_of("lori-s")), "lori-s")


def test_training_leaves_the_models_mode_as_it_was():
    model = attach(load_base(SCALE), config_of("lori-d")).eval()
    fit(model, "lori-d")
    assert not model.training


UNLABELLED = [{"input_ids": [5, 6], "labels": [-100, -100]}]


@pytest.mark.parametrize(
    ("rows", "attached", "message"),
    [([], True, "no rows"), (ROWS, False, "Nothing in this model"), (UNLABELLED, True, "No row has a label")],
)
def test_a_training_of_nothing_is_refused(rows, attached, message):
    model = load_base(SCALE)
    if attached:
        model = attach(model, config_of("lori-d"))
    with pytest.raises(ValueError, match=message):
        fit(model, "lori-d", rows=rows)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_rows():
    model = attach(load_base(SCALE), config_of("lori-d"))
    batches = plan_steps(len(ROWS), config_of("lori-d", batch_size=3))
    bad = batches[1][0]  # a row of the second step
    nan_at_token_1 = lambda _module, ids, out: out.masked_fill((ids[0] == 1)[..., None], float("nan"))  # noqa: E731
    model.get_input_embeddings().register_forward_hook(nan_at_token_1)
    rows = [{**row, "input_ids": [1, *row["input_ids"][1:]]} if i == bad else row for i, row in enumerate(ROWS)]
    with pytest.raises(FloatingPointError, match=rf"nan at step 2, in the batch of rows \[{sorted(batches[1])[0]}, "):
        fit(model, "lori-d", rows=rows, batch_size=3)
