"""The compact file: an adapter of LoRI without its A and without the zeros of B, there and back."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lori.adapters import compact
from lori.adapters.checked_files import digest
from lori.adapters.compact import expand_compact, save_compact
from lori.adapters.layer import projection_a
from lori.adapters.masks import MASK_FILE, load_masks, save_masks
from lori.adapters.peft_files import write_adapter

KEY = "0/nlu"
# d_out, d_in: with rank 3 the masks of 21 and 30 entries fill no whole bytes
SIZES = {"model.layers.0.self_attn.q_proj": (7, 16), "model.layers.0.mlp.down_proj": (10, 40)}
SETTINGS = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["down_proj", "q_proj"]}


def make_masks():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(d_out, 3, generator=generator) < 0.4 for name, (d_out, _) in SIZES.items()}


def make_bs():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(d_out, 3, generator=generator) for name, (d_out, _) in SIZES.items()}


def sparse_bs():
    """B of LoRI-S; a kept entry may well be zero, or minus zero."""
    bs = {name: b.masked_fill(~make_masks()[name], 0) for name, b in make_bs().items()}
    first = make_masks()["model.layers.0.mlp.down_proj"].nonzero()
    bs["model.layers.0.mlp.down_proj"][tuple(first[0])] = 0.0
    bs["model.layers.0.mlp.down_proj"][tuple(first[1])] = -0.0
    return bs


def make_adapter(directory, bs, **changes):
    as_ = {name: projection_a(KEY, name, (3, d_in)) for name, (_, d_in) in SIZES.items()}
    order = sorted(SIZES)
    metadata = {
        "method": "lori-s",
        "a_key": KEY,
        "a_sha256": digest(as_[name] for name in order),
        "b_sha256": digest(bs[name] for name in order),
    }
    tensors = {f"base_model.model.{name}.lora_A.weight": a for name, a in as_.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": b for name, b in bs.items()}
    tensors |= changes.get("tensors", {})
    metadata |= changes.get("metadata", {})
    write_adapter(directory, tensors, SETTINGS, {key: value for key, value in metadata.items() if value is not None})
    return directory


@pytest.fixture
def dense(tmp_path):
    """LoRI-D's directory."""
    return make_adapter(tmp_path / "adapter", make_bs())


@pytest.fixture
def sparse(tmp_path):
    """LoRI-S's directory, with its mask."""
    directory = make_adapter(tmp_path / "adapter", sparse_bs())
    save_masks(make_masks(), directory)
    return directory


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stored_bs(directory):
    tensors = load_file(directory / "adapter_model.safetensors")
    return {name: tensors[f"base_model.model.{name}.lora_B.weight"] for name in SIZES}


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_in_fp32_the_directory_comes_back_byte_for_byte(tmp_path, kind, request):
    directory = request.getfixturevalue(kind)
    save_compact(directory, tmp_path / "c.safetensors", dtype="float32")
    expand_compact(tmp_path / "c.safetensors", tmp_path / "again")
    assert files(tmp_path / "again") == files(directory)
    assert files(directory).keys() >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_in_bf16_b_is_rounded_once_and_the_rest_is_the_same(tmp_path, kind, request):
    directory = request.getfixturevalue(kind)
    save_compact(directory, tmp_path / "c.safetensors", dtype="bfloat16")
    expand_compact(tmp_path / "c.safetensors", tmp_path / "rounded")
    assert all(
        torch.equal(b, stored_bs(directory)[name].bfloat16().float())
        for name, b in stored_bs(tmp_path / "rounded").items()
    )
    save_compact(tmp_path / "rounded", tmp_path / "c2.safetensors", dtype="bfloat16")
    expand_compact(tmp_path / "c2.safetensors", tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "rounded")
    assert (kind == "sparse") == (MASK_FILE in files(tmp_path / "again"))


def test_the_digest_of_a_rounded_b_is_that_of_what_is_in_the_file(tmp_path, sparse):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="bfloat16")
    expand_compact(tmp_path / "c.safetensors", tmp_path / "again")
    content = (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["lori"])
    rounded = stored_bs(tmp_path / "again")
    assert metadata["b_sha256"] == digest(rounded[name] for name in sorted(rounded))
    assert metadata["a_key"] == KEY


def test_only_kept_values_and_one_bit_an_entry_are_stored(tmp_path, sparse):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="bfloat16")
    tensors = load_file(tmp_path / "c.safetensors")
    num_kept = sum(int(mask.sum()) for mask in make_masks().values())
    assert tensors["values"].dtype == torch.bfloat16
    assert {name: len(tensor) for name, tensor in tensors.items()} == {
        "values": num_kept,
        "mask": 4 + 3,
    }  # 30, 21 bits


def test_a_dense_adapter_has_no_bitmap(tmp_path, dense):
    save_compact(dense, tmp_path / "c.safetensors", dtype="float32")
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "c.safetensors").items()} == {"values": (51,)}


def test_the_mask_of_the_expanded_adapter_is_its_own(tmp_path, sparse):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="bfloat16")
    expand_compact(tmp_path / "c.safetensors", tmp_path / "again")
    loaded = load_masks(tmp_path / "again")
    assert loaded.keys() == SIZES.keys()
    assert all(torch.equal(loaded[name], mask) for name, mask in make_masks().items())


Q, DOWN = SIZES
A_OF_Q, B_OF_Q = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


def one_bit_off():
    a = projection_a(KEY, Q, (3, 16))
    a.view(torch.int32)[0, 0] ^= 1
    return a


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"a_key": None}}, r"no a_key in its metadata"),
        ({"metadata": {"a_key": "1/nlu"}}, r"A of model\.layers\.0\.mlp\.down_proj is not what a_key '1/nlu' gives"),
        ({"tensors": {A_OF_Q: one_bit_off()}}, r"A of model\.layers\.0\.self_attn\.q_proj is not what"),
        ({"tensors": {A_OF_Q: projection_a(KEY, Q, (3, 16)).bfloat16()}}, r"A of model\..*q_proj is not what"),
        ({"tensors": {B_OF_Q: torch.ones(7, 3)}}, r"changed after it was saved: its B's"),
        ({"metadata": {"a_sha256": "0" * 64}}, r"changed after it was saved: its A's"),
        (
            {"tensors": {B_OF_Q: torch.ones(7, 3).bfloat16()}, "metadata": {"b_sha256": None}},
            r"B of .*q_proj is torch\.b",
        ),
        ({"tensors": {"base_model.model.lm_head.weight": torch.ones(2, 2)}}, r"holds base_model\.model\.lm_head"),
    ],
)
def test_an_adapter_that_could_not_come_back_is_refused(tmp_path, changes, message):
    directory = make_adapter(tmp_path / "adapter", make_bs(), **changes)
    with pytest.raises(ValueError, match=rf"{directory}.*{message}"):
        save_compact(directory, tmp_path / "c.safetensors", dtype="float32")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_non_zeros_outside_the_mask_are_refused_and_without_the_mask_stored(tmp_path):
    directory = make_adapter(tmp_path / "adapter", make_bs())
    save_masks(make_masks(), directory)
    with pytest.raises(ValueError, match=r"down_proj has non-zeros outside the mask, as continual adapters have"):
        save_compact(directory, tmp_path / "c.safetensors", dtype="float32")
    (directory / MASK_FILE).unlink()
    save_compact(directory, tmp_path / "c.safetensors", dtype="float32")


def test_a_mask_of_another_adapter_is_refused(tmp_path, dense):
    save_masks({**make_masks(), Q: torch.ones(7, 4, dtype=torch.bool)}, dense)
    with pytest.raises(ValueError, match=r"\(7, 4\) for a B of \(7, 3\): made at another rank"):
        save_compact(dense, tmp_path / "c.safetensors", dtype="float32")


def test_an_unknown_dtype_is_refused(tmp_path, dense):
    with pytest.raises(ValueError, match=r"Unknown dtype 'int8'. Known: float32, bfloat16"):
        save_compact(dense, tmp_path / "c.safetensors", dtype="int8")


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is damaged"),
        (flip_last_byte, "is damaged or edited"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"lori-s", b"lori-d")), "is damaged or edited"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"[", b"{", 1)), "is damaged"),
        (lambda path: save_file({"x": torch.ones(2)}, str(path)), "is no lori-compact/1 file"),
    ],
    ids=["missing", "empty", "truncated", "bit", "header", "no JSON", "foreign"],
)
def test_a_compact_file_that_is_not_whole_is_refused_and_nothing_written(tmp_path, sparse, damage, message):
    path = tmp_path / "c.safetensors"
    save_compact(sparse, path, dtype="float32")
    damage(path)
    with pytest.raises(ValueError, match=rf"{path}.*{message}"):
        expand_compact(path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_machine_that_draws_another_a_is_refused(tmp_path, sparse, monkeypatch):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="float32")
    monkeypatch.setattr(compact, "projection_a", lambda key, module, shape: projection_a(key, module, shape) * 2)
    with pytest.raises(ValueError, match=r"c\.safetensors: A as this machine draws it has other bits"):
        expand_compact(tmp_path / "c.safetensors", tmp_path / "again")


def test_an_older_directory_is_not_overwritten(tmp_path, sparse):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="float32")
    with pytest.raises(ValueError, match=r"holds files already"):
        expand_compact(tmp_path / "c.safetensors", sparse)


def test_an_older_file_outlives_a_failed_save(tmp_path, sparse, monkeypatch):
    save_compact(sparse, tmp_path / "c.safetensors", dtype="float32")
    before = (tmp_path / "c.safetensors").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        save_compact(sparse, tmp_path / "c.safetensors", dtype="bfloat16")
    assert files(tmp_path / "adapter").keys() == {"adapter_config.json", "adapter_model.safetensors", MASK_FILE}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "c.safetensors"]
    assert (tmp_path / "c.safetensors").read_bytes() == before
