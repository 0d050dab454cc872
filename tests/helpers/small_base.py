"""A base model that is small, random, and like any other in its folder: config, safetensors, tokenizer."""

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.rows import read_rows

VOCABULARY = 600


def small_llama(folder: Path, data_dir: Path) -> Path:
    """Two layers of width 32; a tokenizer trained on the rows, with a begin and an end token and none for padding."""
    texts = [row["instruction"] for row in read_rows(data_dir, "commonsense/train.json")]
    texts += [row["answer"] for row in read_rows(data_dir, "gsm8k/train.jsonl")]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    inner = trained._tokenizer
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
