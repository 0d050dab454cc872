"""How the paper's datasets are written as prompts, and how the paper's authors wrote them."""

import re
from dataclasses import dataclass

_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_INSTRUCTION_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_THINK = "\nAnswer the above question. First think step by step and then answer the final number.\n"
ANSWER_MARK = "#### "  # before the final number of a GSM8K answer
FINAL_ANSWER = "The final answer is: "
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class PromptStyle:
    """One row of `PROMPT_STYLES`.

    Every line of an instruction is indented by spaces, by as many as the split says; `after_request` ends its first
    line where there is no input. `request` writes what a model should refuse, or should not: None as an instruction
    to train on. `answer_mark` is what "The final answer is: " stands for in an answer of GSM8K. `strips_functions`
    takes the white space off around a function of HumanEval, as bigcode-evaluation-harness does.
    """

    indents: dict[str, int]
    after_request: str
    request: str | None
    answer_mark: str
    strips_functions: bool


PROMPT_STYLES = {
    # One template for training and test, and nothing in it that only a template would say
    "plain": PromptStyle({"train": 0, "test": 0}, "", None, answer_mark=ANSWER_MARK, strips_functions=False),
    # Byte for byte what the released preprocessing (preference_datasets.py) gives: prompts of training and test differ
    # in white space, and two spaces stand before a final number
    "authors": PromptStyle(
        indents={"train": 20, "test": 16},
        after_request=" ",
        request="You are a helpful assistant.Always answer as helpfully as possible, while being safe."
        "\n\nHuman: {request}\n\nAssistant:",
        answer_mark=ANSWER_MARK.rstrip(),
        strips_functions=True,
    ),
}


def check_prompt_style(name: str) -> None:
    """Check that there is such a style.

    Raises:
        ValueError: if not, with the known ones.
    """
    if name not in PROMPT_STYLES:
        raise ValueError(
            f"Unknown prompt style {name!r}. Known: {', '.join(PROMPT_STYLES)} (lori/datasets/prompts.py)."
        )


def instruction_prompt(style: PromptStyle, split: str, instruction: str, context: str = "") -> str:
    """An instruction with or without its input, as Alpaca was trained (Taori et al. 2023)."""
    indent = " " * style.indents[split]
    parts = [("Instruction", instruction), ("Input", context)] if context else [("Instruction", instruction)]
    first = _INSTRUCTION_WITH_INPUT if context else _INSTRUCTION + style.after_request
    sections = "".join(f"\n\n{indent}### {title}:\n{indent}{text}" for title, text in parts)
    return f"{first}{sections}\n\n{indent}### Response:\n{indent}"


def request_prompt(style: PromptStyle, request: str) -> str:
    """A harmful or a harmless request."""
    if style.request is None:
        return instruction_prompt(style, "train", request)
    return style.request.replace("{request}", request)


def math_prompt(question: str) -> str:
    """A question of GSM8K and how to answer it: in training and test, in every style."""
    return question + _THINK


def math_response(style: PromptStyle, answer: str) -> str:
    """An answer of GSM8K, whose final number follows "The final answer is: "."""
    return answer.replace(style.answer_mark, FINAL_ANSWER)
