"""Training as the paper does it: `transformers.Trainer` with the paper's loss, clipping and masks."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SchedulerType

from lori.config import TrainConfig
from lori.data import IGNORED, collate
from lori.methods import LORA_B, module_name
from lori.models import pad_and_eos

WEIGHT_DECAY = 0.0  # any other value would move the entries of B that the mask must leave alone
MAX_GRADIENT_NORM = 1.0  # of each weight matrix by itself (paper; apply_mask_in_backward.py), not of all together
BETAS, EPSILON = (0.9, 0.999), 1e-8


def summed_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the response tokens, summed over tokens and averaged over sequences (paper, appendix).

    `logits` is (batch, length, vocabulary), `labels` (batch, length); logits at t predict the label at t + 1.
    """
    targets = labels[:, 1:]
    scored = targets != IGNORED
    return F.cross_entropy(logits[:, :-1][scored].float(), targets[scored], reduction="sum") / labels.shape[0]


class SequenceLossTrainer(Trainer):
    """`Trainer` with `summed_token_loss`; the optimizer masks and clips each matrix before it steps."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None, **arguments: Any):
        super().__init__(model, **arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over sequences already: nothing to rescale
        self._masks = masks
        self.gradient_norms: list[float] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        """The loss of one batch; see `summed_token_loss`."""
        labels = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        loss = summed_token_loss(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None):  # noqa: ARG002
        """AdamW over what trains, with the paper's constants."""
        assert self.model is not None
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            trainable.values(),
            lr=self.args.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        masks = {} if self._masks is None else matched_masks(trainable, self._masks)
        self.optimizer.register_step_pre_hook(partial(self._before_step, trainable, masks))
        return self.optimizer

    def _before_step(self, trainable: dict[str, nn.Parameter], masks: dict[str, Tensor], *_: Any) -> None:
        norms = mask_and_clip(trainable, masks)
        self.gradient_norms.append(float(norms.norm()))


def matched_masks(trainable: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask of every trainable parameter, by parameter name.

    Raises:
        ValueError: if masks and trained B's are not of the same modules and shapes.
    """
    wanted = {name: module_name(name) for name in trainable if LORA_B in name}
    if set(wanted.values()) != set(masks) or len(wanted) != len(trainable):
        raise ValueError(f"The mask has {len(masks)} modules, the model trains {len(trainable)}: not of one adapter.")
    for name, module in wanted.items():
        if trainable[name].shape != masks[module].shape:
            shapes = f"{tuple(masks[module].shape)} for a B of {tuple(trainable[name].shape)}"
            raise ValueError(f"The mask of {module} is {shapes}: made at another rank or for another base model.")
    return {name: masks[module] for name, module in wanted.items()}


@torch.no_grad()
def mask_and_clip(trainable: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Tensor:
    """Zero the gradients outside the masks, then clip each matrix's norm; the norms before clipping are returned."""
    for name, mask in masks.items():
        gradient = trainable[name].grad
        assert gradient is not None
        gradient.mul_(mask)
    gradients = [parameter.grad for parameter in trainable.values() if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    # 1e-6 as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_(gradients, list((MAX_GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0)))
    return norms


class _StopOnBadLoss(TrainerCallback):
    """A loss that is not finite ends the run: what follows would be wasted."""

    def on_log(self, args, state, control, logs=None, **_):  # noqa: ARG002
        loss = (logs or {}).get("loss", 0.0)
        if not torch.isfinite(torch.tensor(loss)):
            raise FloatingPointError(f"The loss is {loss} at step {state.global_step}: lower the learning rate.")


def train(
    model: nn.Module,
    rows: Sequence[dict[str, list[int]]],
    config: TrainConfig,
    *,
    tokenizer: PreTrainedTokenizerBase,
    masks: Mapping[str, Tensor] | None = None,
) -> list[dict[str, int | float]]:
    """Train `model` in place on tokenised `rows`; the training curve, one point a step.

    Constant learning rate, no warm-up; the last, partial batch trains too (the authors drop it).

    Raises:
        FloatingPointError: if the loss becomes NaN or infinite.
        ValueError: if `masks` are not of this model's B's.
    """
    pad, _ = pad_and_eos(tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SequenceLossTrainer(
            model,
            masks,
            args=_arguments(config, scratch, device=next(model.parameters()).device),
            train_dataset=list(rows),
            data_collator=partial(collate, pad_token_id=pad),
            callbacks=[_StopOnBadLoss()],
        )
        trainer.remove_callback(PrinterCallback)  # the curve is returned, not printed
        started = time.time()
        trainer.train()
        elapsed = time.time() - started
    return _curve(trainer, started, elapsed)


def _curve(trainer: SequenceLossTrainer, started: float, elapsed: float) -> list[dict[str, int | float]]:
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [
        {
            "step": entry["step"],
            "time_ms": int(1000 * (started + elapsed * entry["step"] / len(steps))),
            "train/loss": entry["loss"],
            "train/learning_rate": entry["learning_rate"],
            "train/gradient_norm": norm,
        }
        for entry, norm in zip(steps, trainer.gradient_norms, strict=True)
    ]


def _arguments(config: TrainConfig, scratch: str, *, device: torch.device) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.num_epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SchedulerType.CONSTANT,
        max_grad_norm=0.0,  # ours is per matrix, in the optimizer's hook
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN would be logged as the mean of the losses before it
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
