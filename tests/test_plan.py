"""What a study will take, before anything is spent: counts that are exact, and cells that can't fit refused."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig

from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS, LLAMA_PROJECTIONS
from lori.choices.domains import Example
from lori.choices.hardware import GPUS, Hardware
from lori.config import DataConfig, EvalConfig, MaskConfig, MergeConfig, TrainConfig
from lori.datasets.rows import make_rows
from lori.datasets.tokenise import tokenise
from lori.plan import Cell, Plan, TokenCounts, check, count_tokens, make_plan, to_markdown
from lori.plan.token_counts import training_parts
from lori.recipes.checked_profile import profile
from lori.recipes.configs import eval_config, train_config
from lori.training.batches import collate, plan_micro_batches, plan_steps

SCALE = BASE_MODELS["scale"]

SHAPE_OF_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LLAMA_3_8B = LlamaConfig(**SHAPE_OF_8B, vocab_size=128_256)
MISTRAL_7B = MistralConfig(**SHAPE_OF_8B, vocab_size=32_000)
NUM_PARAMETERS = 8_030_261_248
SHAPE_OF_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
LLAMA_70B = LlamaConfig(**{**SHAPE_OF_8B, **SHAPE_OF_70B}, vocab_size=128_256)
MATH = Cell("dataset", "math train", DataConfig("paper", "math", "train", None))
TEST = Cell("dataset", "math test", DataConfig("paper", "math", "test", None))
# 64 rows of 200 tokens, 80 of them with a label, and 10 prompts of 100 tokens to answer
COUNTS = {
    MATH.config: TokenCounts((120,) * 64, (80,) * 64),
    TEST.config: TokenCounts((100,) * 10, (0,) * 10),
}


def train(method: str, *inputs: Cell, **changes: Any) -> Cell:
    config = TrainConfig(
        base_model="llama",
        projections=LLAMA_PROJECTIONS,
        method=method,
        domain="math",
        rank=32,
        alpha=64,
        learning_rate=5e-5,
        num_epochs=3,
        batch_size=32,
        max_length=512,
        max_prompt_length=256,
        seed=0,
        dtype="bfloat16",
    )
    config = replace(config, **changes)
    return Cell("train", f"{method} math  seed {config.seed}", config, {"inputs": [MATH, *inputs]})


def evaluate(adapter: Cell, **changes: Any) -> Cell:
    config = EvalConfig(
        domain="math",
        num_samples=1,
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=512,
        batch_size=64,
        max_length=512,
        max_prompt_length=256,
        seed=0,
        dtype="bfloat16",
    )
    inputs = {"adapter": adapter, "dataset": TEST}
    return Cell("evaluate", f"{adapter.name}  on math", replace(config, **changes), inputs)


LORI_D = train("lori-d")
MASK = Cell("mask", "lori-d math  sparsity 0.9 model", MaskConfig(0.9, "model"), {"adapter": LORI_D})
LORI_S = train("lori-s", MASK)


def plan_of(*cells: Cell, gpu: str = "h100", base: PreTrainedConfig = LLAMA_3_8B, **hardware: Any) -> Plan:
    return make_plan(cells, base, COUNTS, Hardware(gpu, **hardware))


def merge(method: str, *adapters: Cell) -> Cell:
    config = MergeConfig("llama", method, (0.4,) * len(adapters), 0.7, 0, match_norms=False)
    return Cell("merge", f"{method}  seed 0", config, {"adapters": list(adapters)})


def test_tokens_are_counted_as_training_and_scoring_read_them():
    chosen, tokenizer = profile("smoke"), load_tokenizer(SCALE)
    training, scoring = train_config(chosen, "lora", "nlu", 0), eval_config(chosen, "nlu")
    example = Example("1", "family", "is fox safe?", "yes", None)
    num_prompt, num_response = (len(tokenizer.tokenize(text)) for text in example.pair)
    trained, scored = (count_tokens([example] * 2, tokenizer, config) for config in (training, scoring))
    assert trained == TokenCounts((1 + num_prompt,) * 2, (num_response + 1,) * 2)  # begin token, and EOS
    assert scored == TokenCounts((1 + num_prompt,) * 2, (0, 0))


def test_a_prompt_that_is_cut_counts_as_it_is_read():
    tokenizer, config = load_tokenizer(SCALE), eval_config(profile("smoke"), "nlu")
    long = Example("1", "family", "is fox safe? " * 100, "yes", None)
    assert count_tokens([long], tokenizer, config).prompts == (config.max_prompt_length,)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_parts_are_the_micro_batches_of_training(num_processes):
    chosen, tokenizer = profile("smoke"), load_tokenizer(SCALE)
    config = replace(train_config(chosen, "lora", "nlu", 0), num_epochs=2, batch_size=8)
    examples = make_rows(DataConfig("miniature", "nlu", "train", 20))
    rows = tokenise([example.pair for example in examples], tokenizer, config)
    lengths = [len(row["input_ids"]) for row in rows]
    batches = [
        collate([rows[index] for index in part], pad_token_id=0)
        for batch in plan_steps(len(rows), config)
        for rank in range(num_processes)
        for part in plan_micro_batches(lengths, batch, max_tokens=256, rank=rank, num_processes=num_processes)
    ]
    counts = count_tokens(examples, tokenizer, config)
    work, largest = training_parts(counts, config, max_tokens=256, num_processes=num_processes)
    assert work.num_tokens == 2 * sum(lengths)
    assert work.num_positions == sum(batch["input_ids"].numel() for batch in batches)
    assert work.num_pairs == sum(batch["input_ids"].numel() * batch["input_ids"].shape[1] for batch in batches)
    assert work.num_logits == sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert max(part.num_positions for part in largest) == max(batch["input_ids"].numel() for batch in batches)
    assert max(part.num_labels for part in largest) == max(int((b["labels"] != -100).sum()) for b in batches)


def test_training_reads_every_token_of_every_epoch():
    row = plan_of(LORI_D).rows[0]
    assert (row.tokens, row.num_trainable) == (3 * 64 * 200, 44_040_192)


def test_lori_s_trains_what_its_mask_keeps():
    plan = plan_of(LORI_D, MASK, LORI_S)
    assert [row.num_trainable for row in plan.rows] == [44_040_192, 4_404_019, 4_404_019]
    assert [row.disk_bytes for row in plan.rows[1:]] == [44_040_192 // 8, 4 * 83_886_080 + 44_040_192 // 8]


@pytest.mark.parametrize(("rank", "megabytes"), [(32, 335.54), (64, 671.09)])
def test_an_adapter_is_as_large_as_pefts_file(rank, megabytes):
    assert plan_of(train("lora", rank=rank)).rows[0].disk_bytes / 1e6 == pytest.approx(megabytes, abs=0.01)


def test_concat_adds_ranks_up_and_other_merges_do_not():
    other = train("lori-d", domain="nlu")
    sizes = [row.disk_bytes for row in plan_of(merge("concat", LORI_D, other), merge("ties", LORI_D, other)).rows]
    assert sizes == [2 * 4 * 83_886_080, 4 * 83_886_080]


def test_a_merge_of_whole_models_says_what_the_machine_needs():
    dora = train("dora")
    row = plan_of(merge("concat", dora, dora)).rows[0]
    assert (row.disk_bytes, row.host_bytes) == (4 * NUM_PARAMETERS, 5 * 4 * NUM_PARAMETERS)


def test_hours_are_operations_over_the_assumed_share_of_the_peak():
    row = plan_of(LORI_D).rows[0]
    assert row.flops == pytest.approx(4 * 6_979_321_856 * 38_400, rel=0.1)  # a frozen base, adapter and head beside
    assert row.gpu_seconds == pytest.approx(row.flops / (0.4 * 989e12))


def test_a_base_in_fp32_is_slower_by_the_ratio_of_the_peaks():
    half, full = (plan_of(train("lora", dtype=dtype)).rows[0] for dtype in ("bfloat16", "float32"))
    assert full.gpu_seconds / half.gpu_seconds == pytest.approx(989 / 67)


def test_what_is_generated_is_bounded_by_all_samples_at_full_length():
    row = plan_of(evaluate(LORI_D, num_samples=20, temperature=0.2)).rows[0]
    assert row.tokens == 10 * 100 + 10 * 20 * 512


def test_keys_and_values_of_a_batch_are_counted_at_full_length():
    row = plan_of(evaluate(LORI_D)).rows[0]
    assert (
        row.memory.kv_cache == 10 * (100 + 512) * 2 * 32 * (8 * 128) * 2
    )  # rows, tokens, k and v, layers, width, bf16
    assert row.memory.weights == 2 * NUM_PARAMETERS


def test_writing_takes_at_least_a_reading_of_all_weights_for_each_token():
    row = plan_of(evaluate(LORI_D)).rows[0]
    assert row.gpu_seconds > 512 * 2 * NUM_PARAMETERS / 3.35e12


def test_the_base_method_trains_nothing():
    row = plan_of(train("base")).rows[0]
    assert (row.num_trainable, row.memory.peak, row.flops, row.disk_bytes) == (0, 0, 0, 0)


def test_a_sharded_base_is_a_share_two_layers_and_the_head():
    weights = plan_of(LORI_D, num_gpus=4).rows[0].memory.weights
    assert weights == 2 * (NUM_PARAMETERS // 4) + 2 * (2 * 6_979_321_856 // 32 + 128_256 * 4096)


def test_a_dataset_without_counts_is_named():
    cell = Cell("train", "lora nlu", train("lora").config)
    with pytest.raises(ValueError, match=r"train lora nlu reads no dataset with token counts"):
        plan_of(cell)


def test_what_fits_is_not_refused():
    plan = plan_of(LORI_D, LORI_S, evaluate(LORI_D))
    check(plan)
    assert not plan.problems


def test_full_fine_tuning_of_8b_fits_no_gpu_and_can_not_be_sharded():
    plan = plan_of(train("full"), LORI_D)
    (problem,) = plan.problems
    assert problem.peak > 16 * NUM_PARAMETERS  # weights, gradients and two states of Adam in fp32
    with pytest.raises(
        ValueError, match=r"(?s)1 of 2 cells .* train full .* can't be sharded\): choose a smaller base"
    ) as e:
        check(plan)
    assert "lori-d" not in str(e.value)


def test_the_papers_profile_fits_one_gpu():
    cells = [LORI_S if name == "lori-s" else train(name) for name in profile("paper").methods]
    assert not plan_of(*cells, *map(evaluate, cells)).problems


@pytest.mark.parametrize(
    ("gpu", "cell", "remedy"),
    [
        ("rtx-4090", LORI_D, "micro_batch_tokens=1024"),
        ("rtx-4090", train("shira"), "gradient_checkpointing"),
        ("rtx-4090", evaluate(LORI_D, batch_size=800, num_samples=80), "eval_batch_size=100"),
        ("rtx-4090", train("full", rank=1), "choose a smaller base"),
        ("rtx-4090", evaluate(train("full")), "gpu=a100-40gb"),
    ],
)
def test_a_refused_cell_says_what_would_make_it_fit(gpu, cell, remedy):
    (problem,) = plan_of(cell, gpu=gpu).problems
    assert remedy in problem.remedy


def test_a_cell_fits_with_its_remedy_and_with_nothing_less():
    def fits(tokens: int) -> bool:
        return not plan_of(LORI_D, gpu="rtx-4090", micro_batch_tokens=tokens).problems

    assert [fits(tokens) for tokens in (4096, 2048, 1024)] == [False, False, True]


def test_a_base_too_large_for_one_gpu_is_shared_by_several():
    (problem,) = plan_of(LORI_D, base=LLAMA_70B).problems
    assert problem.remedy == ("It fits with num_gpus=4 (torchrun: a flow run trains on one), micro_batch_tokens=1024.")
    assert not plan_of(LORI_D, base=LLAMA_70B, num_gpus=4, micro_batch_tokens=1024).problems
    assert plan_of(LORI_D, base=LLAMA_70B, num_gpus=2, micro_batch_tokens=1024, gradient_checkpointing=True).problems


def test_a_base_that_trains_itself_is_sent_to_a_gpu_that_holds_it_whole():
    (problem,) = plan_of(train("full"), base=MISTRAL_7B).problems
    assert problem.remedy.startswith("It fits with gpu=h200, gradient_checkpointing")


def test_a_base_too_large_to_generate_on_one_gpu_is_not_planned_on_several():
    (problem,) = plan_of(evaluate(LORI_D), base=LLAMA_70B, num_gpus=8).problems
    assert "gpu=h200" not in problem.remedy
    assert "choose a smaller base" in problem.remedy


def test_the_text_has_a_line_a_method_and_domain_with_sums_over_seeds():
    text = to_markdown(plan_of(MATH, LORI_D, train("lori-d", seed=1), MASK, LORI_S, evaluate(LORI_D)))
    (line,) = [line for line in text.splitlines() if line.startswith("| train | lori-d math |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["2", "44,040,192"]
    assert cells[5] == f"{2 * 3 * 64 * 200:,}"
    assert cells[8] == "0.671"  # GB of two adapters
    assert "assumptions, not measurements" in text
    assert "upper bounds" in text


def test_the_text_says_what_does_not_fit_and_on_other_architectures_what_is_a_guess():
    plan = plan_of(train("full"))
    assert "**1 of 1 cells do not fit" in to_markdown(plan)
    assert "are a guess" not in to_markdown(plan)
    assert "are a guess" in to_markdown(replace(plan, is_like_llama=False))


def test_every_gpu_of_the_table_has_less_memory_than_its_name_says():
    named = {"h100": 80, "a100-80gb": 80, "a100-40gb": 40, "l40s": 48, "rtx-4090": 24}
    assert all(GPUS[name].memory < gib * 2**30 for name, gib in named.items())
