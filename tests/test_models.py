"""A base model is a row or a folder: its name, its identity, and why its files are refused before they are loaded."""

import re
import shutil

import pytest
import torch
from bases import GPT2_LIKE, LLAMA_LIKE, config_of, tokenizer_of, write_base
from safetensors.torch import load_file, save_file

from lori.base_models.loading import check_base, load_base
from lori.base_models.resolve import BASE_MODELS, base_model, split_base

SCALE = BASE_MODELS["scale"]


@pytest.fixture
def llama(tmp_path):
    """The folder of a base model."""
    return write_base(tmp_path / "llama", config_of("llama"))


def test_a_row_is_known_without_the_hub_and_is_computed_in_bf16_unless_it_is_the_scale_model():
    for name in ("llama-3-8b", "mistral-7b"):
        row = base_model(name)
        assert base_model(name).identity == f"{name}@{row.revision}"
        assert re.fullmatch(r"[0-9a-f]{40}", str(row.revision))
        assert (row.suite, row.dtype) == ("paper", "bfloat16")
    assert (base_model("scale").suite, base_model("scale").dtype) == ("miniature", "float32")


def test_a_folder_with_the_record_of_a_scale_model_is_one_and_any_other_record_is_none(llama):
    for text in ('{"suite": "miniature"}', '{"suite": "paper"}', '["suite"]', "no JSON"):
        (llama / "recipe.json").write_text(text)
        row = base_model(str(llama))
        expected = ("miniature", "float32") if "miniature" in text else ("paper", "bfloat16")
        assert (row.suite, row.dtype) == expected


def test_a_folders_identity_is_its_contents_and_not_its_place(llama, tmp_path):
    before = base_model("llama", str(tmp_path)).identity
    assert re.fullmatch(r"llama@[0-9a-f]{12}", before)
    (llama / "README.md").write_text("not read")
    moved = shutil.copytree(llama, tmp_path / "elsewhere" / "llama", copy_function=shutil.copyfile)
    assert base_model("llama", str(moved.parent)).identity == base_model(str(moved)).identity == before
    assert base_model(before, str(moved.parent)).source == str(moved)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_other_contents_are_another_base_model(file, llama):
    before = base_model("llama", str(llama.parent)).identity
    content = bytearray((llama / file).read_bytes())
    content[-2:] = b" }" if file.endswith("json") else b"\x01\x01"
    (llama / file).write_bytes(content)
    assert base_model("llama", str(llama.parent)).identity != before
    with pytest.raises(ValueError, match=r"'llama' is at another revision here than [0-9a-f]{12}: check that one out"):
        base_model(before, str(llama.parent))


def test_what_a_user_types_is_taken_apart(llama, monkeypatch):
    monkeypatch.chdir(llama.parent)
    (llama.parent / "scale").symlink_to("llama")
    (llama.parent / "org" / "empty").mkdir(parents=True)
    here = str(llama.parent)
    assert split_base(str(llama)) == split_base("./llama") == split_base("llama/") == ("llama", here)
    assert split_base(f"{here}/org/../llama") == ("llama", here)
    assert split_base("scale") == ("scale", None), "a row wins over a folder"
    with pytest.raises(ValueError, match="scale is the name of a row of BASE_MODELS already"):
        split_base("./scale")  # or the row would be taken for it
    assert split_base("org/empty") == ("org/empty", None), "no config.json: a hub id"
    shutil.move(llama, llama.parent / "org" / "model")
    assert split_base("org/model") == ("model", f"{here}/org"), "a folder wins over a hub id"


def test_a_folder_with_an_at_in_its_name_is_refused(llama):
    with pytest.raises(ValueError, match=r"llama@2: a base model's name has no @.*Rename"):
        split_base(str(llama.rename(llama.parent / "llama@2")))


@pytest.mark.parametrize("name", ["gpt", "", "..", "./nowhere/at-all", "/nowhere", "a/b/c"])
def test_an_unknown_name_is_answered_with_what_is_known(name, tmp_path):
    known = r"Known: scale, llama-3-8b, mistral-7b, or any folder or hub id 'org/model' of a causal language model\."
    with pytest.raises(ValueError, match=rf"^Unknown base model '{re.escape(name)}'\. {known}"):
        base_model(name, str(tmp_path))


@pytest.mark.parametrize("name", ["scale@0123", "llama-3-8b@0123"])
def test_a_row_at_another_revision_is_refused(name):
    with pytest.raises(ValueError, match="is at another revision here than 0123"):
        base_model(name)


def test_only_safetensors_are_read(llama):
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors, and only safetensors are read: convert it with"):
        check_base(base_model(str(llama)))


def test_weights_cut_off_are_found_before_they_are_loaded(llama):
    with (llama / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        check_base(base_model(str(llama)))


def test_a_missing_shard_is_found_before_the_others_are_loaded(llama):
    model = load_base(base_model(str(llama)))
    (llama / "model.safetensors").unlink()
    model.save_pretrained(llama, max_shard_size="50KB")
    check_base(base_model(str(llama)))
    shards = sorted(llama.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"has no {shards[1].name}"):
        check_base(base_model(str(llama)))


def test_weights_that_lack_a_tensor_are_not_filled_up_at_random(llama):
    tensors = load_file(llama / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack lm_head\.weight"):
        load_base(base_model(str(llama)))


def test_a_tokenizer_without_an_end_is_refused(llama):
    tokenizer_of(pad_token="<pad>").save_pretrained(llama)
    with pytest.raises(ValueError, match="has no end token"):
        check_base(base_model(str(llama)))


def test_a_folder_without_a_tokenizer_is_refused(llama):
    for path in llama.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer that transformers can read"):
        check_base(base_model(str(llama)))


def test_a_padding_token_without_an_embedding_is_refused_and_an_unused_special_one_is_not(llama):
    num_tokens = len(tokenizer_of(**LLAMA_LIKE))
    write_base(llama, config_of("llama", vocab_size=num_tokens), **GPT2_LIKE)
    tokenizer = tokenizer_of(**GPT2_LIKE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(llama)
    check_base(base_model(str(llama)))
    tokenizer.pad_token = "<image>"
    tokenizer.save_pretrained(llama)
    with pytest.raises(ValueError, match=rf"beyond the model's {num_tokens} embeddings: '<image>' \({num_tokens}\)"):
        check_base(base_model(str(llama)))


def test_a_vocabulary_larger_than_the_embedding_is_refused(llama):
    write_base(llama, config_of("llama", vocab_size=200))
    with pytest.raises(ValueError, match="tokens beyond the model's 200 embeddings"):
        check_base(base_model(str(llama)))


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_weights_are_loaded_in_the_dtype_asked_for(name, dtype, llama):
    model = load_base(base_model(str(llama)), dtype=name)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"Unknown dtype 'fp8'\. Known: float32, bfloat16, float16"):
        load_base(SCALE, dtype="fp8")


def test_auto_is_the_gpu_where_there_is_one():
    assert load_base(SCALE, "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
