"""A mask's file: what it says of itself, and what is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from helpers.mask_inputs import BS, normal, same, save_bs
from lori.adapters.masks import (
    MASK_FILE,
    load_masks,
    save_masks,
)


def some_masks():
    return {"m.0.up_proj": normal(7, 3) > 0.9, "m.0.q_proj": normal(13, 3) > 0}  # 21 and 39 bits: no whole bytes


def test_a_mask_survives_its_file(tmp_path):
    save_masks(some_masks(), tmp_path)
    assert same(load_masks(tmp_path), some_masks())
    assert same(load_masks(tmp_path / MASK_FILE), some_masks())


def test_a_mask_is_saved_beside_an_adapter(tmp_path):
    save_bs(tmp_path / "adapter", torch.float32)
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    save_masks(some_masks(), tmp_path / "adapter")
    after = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert after == {**before, MASK_FILE: after[MASK_FILE]}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_mask_is_one_bit_an_entry(tmp_path):
    save_masks({"m.0.q_proj": torch.ones(4096, 32, dtype=torch.bool)}, tmp_path)
    assert 4096 * 32 / 8 < (tmp_path / MASK_FILE).stat().st_size < 4096 * 32 / 8 + 600


def test_an_old_mask_outlives_a_failed_save(tmp_path, monkeypatch):
    save_masks(some_masks(), tmp_path / "mask")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        save_masks({"m.0.q_proj": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "mask")
    assert same(load_masks(tmp_path / "mask"), some_masks())


def change_header(path, change):
    """The file with `change` made to the JSON in its header, the bits as they were."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["lori"])
    change(ours)
    header["__metadata__"]["lori"] = json.dumps(ours)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
        lambda path: change_header(path, lambda ours: ours.pop("sha256")),
        lambda path: change_header(path, lambda ours: ours.update(sha256="0" * 64)),
        lambda path: change_header(path, lambda ours: ours.update(num_kept=3)),
        lambda path: change_header(path, lambda ours: ours["shapes"].update({"m.0.q_proj": [13, 4]})),
        lambda path: change_header(path, lambda ours: ours["shapes"].pop("m.0.q_proj")),
        lambda path: change_header(path, lambda ours: ours.update(shapes=[])),
    ],
    ids=["truncated", "cut", "empty", "bit", "no digest", "digest", "count", "shape", "module", "no shapes"],
)
def test_a_damaged_or_edited_mask_is_refused_by_its_name(tmp_path, damage):
    save_masks(some_masks(), tmp_path)
    damage(tmp_path / MASK_FILE)
    with pytest.raises(ValueError, match=rf"{MASK_FILE} is damaged.*again"):
        load_masks(tmp_path)


def test_a_mask_that_is_not_there_or_not_a_mask_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"{MASK_FILE} does not exist: save a mask"):
        load_masks(tmp_path)
    save_file({"m.0.q_proj": torch.zeros(3, dtype=torch.uint8)}, str(tmp_path / MASK_FILE))
    with pytest.raises(ValueError, match=rf"{MASK_FILE} is no lori-mask/1 file"):
        load_masks(tmp_path)


def test_the_masks_that_the_authors_released_are_read(tmp_path):
    theirs = {f"base_model.model.{name}.lora_B.default.weight": b.abs() >= 1 for name, b in BS.items()}
    torch.save(theirs, tmp_path / "0.9_mask.pt")
    assert same(load_masks(tmp_path / "0.9_mask.pt"), {name: b.abs() >= 1 for name, b in BS.items()})


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path):
    torch.save({"mask": Malicious(tmp_path / "it ran")}, tmp_path / "0.9_mask.pt")
    with pytest.raises(ValueError, match=r"0\.9_mask\.pt is not read"):
        load_masks(tmp_path / "0.9_mask.pt")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"no pickle at all"])
def test_a_damaged_pickle_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "0.9_mask.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.9_mask\.pt is not read: it is damaged"):
        load_masks(tmp_path / "0.9_mask.pt")


@pytest.mark.parametrize("content", [{}, torch.ones(2, 2), {"m.lora_B.default.weight": torch.ones(2, 2)}])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "0.9_mask.pt")
    with pytest.raises(ValueError, match=r"0\.9_mask\.pt is not a mask of the authors'"):
        load_masks(tmp_path / "0.9_mask.pt")
