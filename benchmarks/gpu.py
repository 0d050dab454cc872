"""LoRI-S, LoRI-D, LoRA, and LoRA under a plain Trainer, side by side, at Llama-3-8B's shape on a GPU.

    python -m benchmarks.gpu            # random weights in bf16, about 4,000 tokens a batch; writes gpu.json
    python -m benchmarks.gpu --toy      # the same code at toy size, on a CPU too; writes gpu_toy.json

Rows have the lengths of NLU rows; tokens are counted without padding. PEFT's LoRA is trained as its documentation
shows, `Trainer` with its defaults, labels in the batch, all logits, and by `lori.train`: what is the loop's, and what
the method's. Beside what was measured stands what `lori.plan` says of it.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from benchmarks.loop import nlu_like_rows
from benchmarks.measure import goal, interleave, peak_bytes, ratio, report
from lori.adapters.attach import attach, sparsify
from lori.adapters.attached import b_shapes
from lori.adapters.masks import random_masks
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS, LLAMA_PROJECTIONS
from lori.choices.hardware import GPUS
from lori.choices.methods import METHODS as ROWS_OF_METHODS
from lori.config import MaskConfig, TrainConfig, TrainRuntime
from lori.datasets.tokenise import IGNORED, Rows
from lori.plan.costs import train_flops, train_memory
from lori.plan.sizes import adapter_of, sizes_of
from lori.plan.token_counts import TokenCounts, training_parts
from lori.recipes.paper_numbers import paper_config
from lori.training.batches import collate
from lori.training.trainer import train

NUM_STEPS, ROUNDS = 10, 3
MICRO_BATCH_TOKENS = 8192
MASK = MaskConfig(0.9, "model")
LLAMA_3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TOY = {
    "vocab_size": 32_000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def base(shape: dict[str, int]) -> LlamaForCausalLM:
    """Random weights, made where they stay: in bf16 on a GPU, in fp32 on a CPU, which may lack bf16 instructions."""
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    with torch.device("cuda" if on_gpu else "cpu"):
        torch.set_default_dtype(torch.bfloat16 if on_gpu else torch.float32)
        model = LlamaForCausalLM(LlamaConfig(**shape, use_cache=False))
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False)


def config_of(method: str) -> TrainConfig:
    """As the pipeline trains on the base: in its dtype."""
    return paper_config(method, "nlu", "llama-3-8b", dtype="bfloat16" if torch.cuda.is_available() else "float32")


def lori(method: str, model: LlamaForCausalLM, rows: Rows) -> tuple[PeftModel, Callable[[], object]]:
    config = config_of(method)
    adapted = attach(model, config)
    assert isinstance(adapted, PeftModel)
    if method == "lori-s":
        sparsify(adapted, random_masks(b_shapes(adapted), MASK, seed=0))
    runtime = TrainRuntime(micro_batch_tokens=MICRO_BATCH_TOKENS)
    return adapted, partial(
        train, adapted, rows, config, tokenizer=load_tokenizer(BASE_MODELS["scale"]), runtime=runtime
    )


def peft_lora(model: LlamaForCausalLM, rows: Rows) -> tuple[PeftModel, Callable[[], object]]:
    adapted = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=list(LLAMA_PROJECTIONS)))
    assert isinstance(adapted, PeftModel)
    return adapted, partial(plain_trainer, adapted, rows)


def plain_trainer(model: nn.Module, rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=32,
            num_train_epochs=1,
            learning_rate=5e-5,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=partial(collate, pad_token_id=0))
        trainer.remove_callback(PrinterCallback)
        trainer.train()


THEIRS, SAME_LOOP = "LoRA (PEFT), plain Trainer", "LoRA (PEFT)"
OURS = {SAME_LOOP: "lora", "LoRI-D": "lori-d", "LoRI-S": "lori-s"}
METHODS = {THEIRS: peft_lora, **{name: partial(lori, method) for name, method in OURS.items()}}


def plan_of(method: str, shape: dict[str, int], rows: Rows) -> tuple[float, int]:
    """GiB beyond the model at the peak, and FLOPs of all steps, as `lori.plan` has them."""
    config, sizes = config_of(method), sizes_of(LlamaConfig(**shape))
    adapter = adapter_of(config, sizes, MASK if ROWS_OF_METHODS[method].mask_from else None)
    prompts = tuple(row["labels"].count(IGNORED) for row in rows)
    labels = tuple(len(row["labels"]) - prompt for row, prompt in zip(rows, prompts, strict=True))
    counts = TokenCounts(prompts, labels)
    work, parts = training_parts(counts, config, max_tokens=MICRO_BATCH_TOKENS, num_processes=1)
    memories = [train_memory(sizes, config, adapter, part, checkpointing=False, num_gpus=1) for part in parts]
    peak = max(memory.peak - memory.weights for memory in memories)
    return peak / 2**30, train_flops(sizes, config, adapter, work, checkpointing=False)


def start(make: Callable, model: LlamaForCausalLM, rows: Rows, made: list) -> None:
    """Attach and train once: its peak is the adapter's and the training's, and it warms up."""
    made.append(make(model, rows))
    made[0][1]()


def main(*, toy: bool) -> None:
    num_steps, shape = (2, TOY) if toy else (NUM_STEPS, LLAMA_3_8B)
    rows = nlu_like_rows(32 * num_steps)
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    model = base(shape)
    seconds, peaks = {name: [] for name in METHODS}, dict.fromkeys(METHODS, 0)
    for _ in range(ROUNDS):
        for name, make in METHODS.items():  # one base for all: three of 16 GB would not fit
            made: list = []
            peaks[name] = max(peaks[name], peak_bytes(partial(start, make, model, rows, made)))
            adapted, work = made[0]
            seconds[name] += interleave({name: work}, 1)[name]
            model = adapted.unload()
    table = [
        {"method": name, "tokens/s": num_tokens / min(times), "peak GiB beyond the model": peaks[name] / 2**30}
        for name, times in seconds.items()
    ]
    for row in table:
        if row["method"] in OURS:
            row["planned GiB beyond it"], flops = plan_of(OURS[row["method"]], shape, rows)
            row["of the H200's peak FLOP/s"] = flops / min(seconds[row["method"]]) / GPUS["h200"].bf16_flops
    goals = [
        goal("LoRI-S tokens/s / LoRA's", 1 / ratio(seconds, "LoRI-S", THEIRS), "≥", 1.5),
        goal("LoRI-S peak / LoRA's", peaks["LoRI-S"] / peaks[THEIRS], "≤", 0.6),
        goal("LoRI-S step / LoRA's in the same loop", ratio(seconds, "LoRI-S", SAME_LOOP), "≤", 0.8),
    ]
    report("gpu_toy" if toy else "gpu", table, goals=goals, shape=shape, num_steps=num_steps)
    for line in goals:
        print(line)


if __name__ == "__main__":
    if "--toy" not in sys.argv and not torch.cuda.is_available():
        sys.exit("There is no GPU here. `python -m benchmarks.gpu --toy` runs the same code at toy size.")
    main(toy="--toy" in sys.argv)
