"""Training as the paper does it: `transformers.Trainer` with the paper's loss and clipping, and what LoRI saves.

A step is one batch of the plan in `batches.py`. Each process computes its share in micro-batches, with logits at label
positions alone; what trains is the same on every process. Under torchrun, accelerate wraps the model in DDP; a base
that was sharded when it was loaded (`distributed_config=`, FSDP2) keeps its shards, and only the adapter's gradients
are averaged here.
"""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SchedulerType

from lori.adapters.attached import adapter_tensors, lora_layers
from lori.adapters.layer import FlatValues, SparseB
from lori.adapters.peft_settings import TENSORS_FILE
from lori.base_models.loading import pad_and_eos
from lori.choices.methods import method
from lori.config import TrainConfig, TrainRuntime
from lori.datasets.tokenise import IGNORED, Rows
from lori.training.batches import collate, plan_micro_batches, plan_steps
from lori.training.checkpoints import CheckpointEvery, newest_checkpoint
from lori.training.optimizer import adamw, clip_each, preconditioners

# The rate is that of all processes together, padding not counted; memory is this process's peak, of a GPU where it is
# on one
CURVE = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mb")


def summed_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the response tokens, summed over tokens and sequences (the paper divides by sequences).

    `batch` has `input_ids`, `attention_mask` and `labels`, each (sequences, length). Only positions whose next token
    has a label reach the head: at 8B and 4 % labels that saves some 10 GB of logits.
    """
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    scored = targets != IGNORED
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, logits_to_keep=scored, use_cache=False).logits
    return F.cross_entropy(logits.float(), targets[scored], reduction="sum")


class LoriTrainer(Trainer):
    """`Trainer` whose batches are `plan_steps`' and whose optimizer clips each matrix and knows sparse B's."""

    def __init__(self, model: nn.Module, rows: Rows, config: TrainConfig, *, pad_token_id: int, **options: Any):
        self.micro_batch_tokens: int = options.pop("micro_batch_tokens")
        super().__init__(model, **options)
        self.rows, self.config, self.pad_token_id = rows, config, pad_token_id
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.compute_dtype: Any = model.dtype
        self.flat: FlatValues | None = None
        self.preconditioners: list[tuple[Tensor, Tensor]] = []
        self.gradient_norm = 0.0
        self.tokens_since, self.since = 0, time.monotonic()  # the last point of the curve

    def get_train_dataloader(self) -> DataLoader:
        """One item a step, for all epochs; every process has all items and takes its share in `training_step`."""
        steps = plan_steps(len(self.rows), self.config)
        return DataLoader(steps, batch_size=1, collate_fn=lambda items: {"rows": items[0]})  # pyright: ignore

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Not counted: an item is a list of rows, which Trainer can't read."""
        return 0

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:  # noqa: ARG002
        """The gradient of one batch; its loss, averaged over its sequences and the same on every process.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        model.train()
        if self.flat:
            self.flat.lend_gradients()
        batch: Any = inputs["rows"]
        self.tokens_since += sum(self.lengths[row] for row in batch)
        num_processes = self.args.world_size
        parts = plan_micro_batches(
            self.lengths,
            batch,
            max_tokens=self.micro_batch_tokens,
            rank=self.args.process_index,
            num_processes=num_processes,
        )
        total = torch.zeros((), device=self.args.device)
        for part in parts[:-1]:
            with self.accelerator.no_sync(model):
                total += self._backward(model, part, num_processes / len(batch))
        total += self._backward(model, parts[-1], num_processes / len(batch))
        return self._checked(total, batch)

    def _backward(self, model: nn.Module, part: list[int], factor: float) -> Tensor:
        """`factor` undoes that gradients are averaged over processes, and averages over the batch's sequences."""
        rows = collate([self.rows[row] for row in part], pad_token_id=self.pad_token_id)
        batch = {name: tensor.to(self.args.device) for name, tensor in rows.items()}
        dtype = getattr(torch, self.config.dtype)
        with torch.autocast(self.args.device.type, dtype, enabled=dtype != torch.float32):  # what trains is fp32
            loss = summed_token_loss(model, batch) * factor
        self.accelerator.backward(loss)
        return loss.detach()

    def _checked(self, loss: Tensor, batch: list[int]) -> Tensor:
        if dist.is_initialized():
            dist.all_reduce(loss)  # or one process would raise while the others wait for it
            loss /= self.args.world_size
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, in the batch of rows"
                f" {sorted(batch)}: lower the learning rate, or look at these rows."
            )
        return loss

    def create_optimizer(self, model=None):  # noqa: ARG002
        """AdamW over what trains, with the paper's constants."""
        assert self.model is not None
        sparse = [module for module in self.model.modules() if isinstance(module, SparseB)]
        keep_dense = self.compute_dtype if self.args.device.type == "cuda" else None
        self.flat = FlatValues(sparse, keep_dense=keep_dense) if sparse else None
        own = {id(layer.values) for layer in sparse}
        dense = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        parameters = [self.flat.values, *dense] if self.flat else dense
        if method(self.config.method).precondition:
            self.preconditioners = preconditioners(lora_layers(self.model).values())
        self.optimizer = adamw(parameters, self.args.learning_rate)
        self.optimizer.register_step_pre_hook(lambda *_: self._before_step(parameters))
        self.optimizer.register_step_post_hook(lambda *_: self.flat.scatter() if self.flat else None)
        return self.optimizer

    def _before_step(self, parameters: list[nn.Parameter]) -> None:
        matrices = self.flat.gradients() if self.flat else []
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.is_distributed_loading_by_transformers:
            for gradient in gradients:
                dist.all_reduce(gradient)
                gradient /= self.args.world_size
        matrices += gradients[1:] if self.flat else gradients
        self.gradient_norm = float(clip_each(matrices).norm())
        for b, factor in self.preconditioners:
            assert b.grad is not None
            b.grad = b.grad @ factor

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: adapters are equal on all processes by construction, and `_before_step` averages once a step."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A point of the curve; in the trainer's state, so that a resumed run has all of them."""
        if "loss" in logs:
            now = time.monotonic()
            logs = {
                **logs,
                "gradient_norm": self.gradient_norm,
                "tokens_per_second": self.tokens_since / (now - self.since),
                "memory_mb": _peak_memory(self.args.device) / 1e6,
                "time_ms": int(1000 * time.time()),
            }
            self.tokens_since, self.since = 0, now
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir
        assert self.model
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            if isinstance(self.model, PeftModel):
                save_file(adapter_tensors(self.model), Path(output_dir, TENSORS_FILE), metadata={"format": "pt"})
            else:
                assert isinstance(self.model, PreTrainedModel)
                self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, under a temporary name until it is whole; then the one before it goes."""
        assert self.args.output_dir
        place = Path(self.args.output_dir)
        self.args.output_dir = str(place / "partial")
        super()._save_checkpoint(model, trial)
        self.args.output_dir = str(place)
        if dist.is_initialized():
            dist.barrier()  # every process writes the state of its generators
        if self.args.should_save:
            before, newest = list(place.glob("checkpoint-*")), f"checkpoint-{self.state.global_step}"
            os.replace(place / "partial" / newest, place / newest)
            for older in (place / "partial", *before):  # a killed process may have left some
                shutil.rmtree(older)


def train(
    model: nn.Module,
    rows: Rows,
    config: TrainConfig,
    *,
    tokenizer: PreTrainedTokenizerBase,
    runtime: TrainRuntime | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, int | float]]:
    """Train `model` in place on tokenised `rows`; the training curve, one point a step.

    Constant learning rate, no warm-up; the last, partial batch trains too (the authors drop it). Interrupted and run
    again with the same `runtime.checkpoint_dir`, it ends with the same bits on a CPU. Under torchrun every process
    calls this. `callbacks` are called as transformers' Trainer does, after a checkpoint is whole.
    torch's random generator is seeded with `config.seed`.

    Raises:
        FloatingPointError: if the loss becomes NaN or infinite, with the step and the rows.
        ValueError: if there are no rows or no labels, if checkpoints are of another training, if a mask is missing, or
            if nothing in `model` trains.
    """
    runtime = runtime or TrainRuntime()
    pad, _ = pad_and_eos(tokenizer)
    if not rows:
        raise ValueError("There are no rows to train on.")
    _check_trainable(model, config)
    if all(label == IGNORED for row in rows for label in row["labels"]):
        raise ValueError("No row has a label to learn: every response was cut off, or is empty.")
    was_training = model.training
    with tempfile.TemporaryDirectory() as scratch:
        place = runtime.checkpoint_dir or scratch
        arguments = _arguments(config, place, device=next(model.parameters()).device)  # joins the other processes
        newest = newest_checkpoint(Path(place), model, rows, config)
        trainer = LoriTrainer(
            model,
            rows,
            config,
            pad_token_id=pad,
            micro_batch_tokens=runtime.micro_batch_tokens,
            args=arguments,
            callbacks=[*([CheckpointEvery(runtime.checkpoint_every)] if runtime.checkpoint_dir else []), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)  # the curve is returned, not printed
        base: Any = model  # or the adapted base inside, to which PEFT passes on
        if runtime.gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
            base.disable_input_require_grads()  # only reentrant checkpoints need inputs with gradients
        try:
            trainer.train(resume_from_checkpoint=newest)
        finally:
            if trainer.flat:
                trainer.flat.release()
            if runtime.gradient_checkpointing:
                base.activation_checkpointing_disable()
            model.train(was_training)
    return curve_of(trainer.state)


def _check_trainable(model: nn.Module, config: TrainConfig) -> None:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("Nothing in this model trains: attach a method to it first (lori.attach).")
    if any(isinstance(parameter, DTensor) for parameter in trainable):
        raise ValueError(
            "A base that is sharded over processes can't train itself: attach an adapter, or load it whole."
        )
    if any(parameter.dtype != torch.float32 for parameter in trainable):
        raise ValueError(
            "What trains is kept in float32, or small steps are lost: load the base in float32 for full"
            " fine-tuning, which computes in the config's dtype all the same."
        )
    if method(config.method).mask_from and not any(isinstance(module, SparseB) for module in model.modules()):
        raise ValueError(f"{config.method} trains inside a mask: give the model one first (lori.sparsify).")


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def curve_of(state: TrainerState) -> list[dict[str, int | float]]:
    """The training curve so far, one point a step: what `train` returns at its end."""
    return [
        {
            "step": entry["step"],
            "time_ms": entry["time_ms"],
            **{f"train/{name}": entry[name] for name in CURVE if name in entry},
        }
        for entry in state.log_history
        if "loss" in entry
    ]


def _arguments(config: TrainConfig, place: str, *, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=place,
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=1,  # the plan holds all steps of all epochs
        learning_rate=config.learning_rate,
        lr_scheduler_type=SchedulerType.CONSTANT,
        max_grad_norm=0.0,  # ours is per matrix, in the optimizer's hook
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device.type == "cpu",
        ddp_broadcast_buffers=False,  # they are equal already, and the indices of sparse B's are large
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a NaN would be logged as the mean of the losses before it
        save_strategy="no",  # `CheckpointEvery` asks for them
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    _ = arguments.device  # counts the GPUs
    arguments._n_gpu = min(arguments.n_gpu, 1)  # or Trainer would wrap the model in DataParallel where it sees several
    return arguments
