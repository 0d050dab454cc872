"""Small base models with random weights, of any family, written to a folder."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY, PAD, BOS, EOS = 300, 0, 1, 2
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # paper: its target modules
NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
# Config class, the linears of its layers (those of its modeling file), and how many there are in a layer
FAMILIES = {
    "llama": ("LlamaConfig", LLAMA, 7),
    "mistral": ("MistralConfig", LLAMA, 7),
    "qwen2": ("Qwen2Config", LLAMA, 7),
    "qwen3": ("Qwen3Config", LLAMA, 7),
    "gemma": ("GemmaConfig", LLAMA, 7),
    "gemma2": ("Gemma2Config", LLAMA, 7),
    "gemma3": ("Gemma3TextConfig", LLAMA, 7),
    "phi": ("PhiConfig", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), 6),
    "phi3": ("Phi3Config", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), 4),
    "olmo": ("OlmoConfig", LLAMA, 7),
    "olmo2": ("Olmo2Config", LLAMA, 7),
    "gpt2": ("GPT2Config", ("c_attn", "c_proj", "c_fc"), 4),  # c_proj is in the attention and in the MLP
    "gpt-neox": ("GPTNeoXConfig", NEOX, 4),
    "falcon": ("FalconConfig", NEOX, 4),
    "opt": ("OPTConfig", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), 6),
}
PAIRS = [("one two", "three"), ("four five", "six"), ("seven", "eight nine")]


def tokenizer_of(**special):
    """A byte-level BPE; a begin token stands before every text if it has one, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{prompt} {response}" for prompt, response in PAIRS], trainer)
    if "bos_token" in special:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


LLAMA_LIKE = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
GPT2_LIKE = {"eos_token": "</s>"}


def config_of(name, **changes):
    head = {"head_dim": 8} if name.startswith("gemma") else {}
    return getattr(transformers, FAMILIES[name][0])(**{**SIZES, **head, **changes})


def write_base(folder, config, **special):
    """A base model with random weights, large enough for logits that differ, and a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer_of(**(special or LLAMA_LIKE)).save_pretrained(folder)
    return folder
