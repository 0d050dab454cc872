"""What the paper says of its own results, as far as it is known in numbers (abstract; its article; the appendix)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFigure:
    """One number: what it is of, in percent, and for which setting the paper gives it."""

    quantity: str
    percent: float
    setting: str


PUBLISHED_FIGURES = {
    "lori-d": PublishedFigure("trainable entries of lori-d, of lora's", 52.5, "Llama-3-8B, r = 32"),
    "lori-s": PublishedFigure("trainable entries of lori-s, of lora's", 5.25, "Llama-3-8B, r = 32"),
    "code": PublishedFigure("code pass@1 of the better LoRI, above lora's, relative", 17.3, "Llama-3-8B, HumanEval"),
    "merged_safety": PublishedFigure("refusal rate of the best LoRI merge", 86.6, "HEx-PHI"),
}
