"""A method (`methods.py`) on a model: attach, sparsify, save and load what it trains."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lori.adapters.attached import (
    ADAPTER,
    adapter_tensors,
    b_shapes,
    check_base,
    check_untrained,
    lora_layers,
    set_tensors,
    shape_of,
    weight_of,
)
from lori.adapters.baselines import as_lora, attach_tuner, digest_of_all, kind_of, load_tuner, trained_half
from lori.adapters.checked_files import digest, is_first_process, written_whole
from lori.adapters.layer import LoriLinear, PlainLinear, SparseB, freeze_a, projection_a
from lori.adapters.masks import MASK_FILE, check_masks, save_masks
from lori.adapters.peft_files import (
    LORA_A,
    LORA_B,
    AdapterFile,
    check_digests,
    module_name,
    open_adapter,
    write_adapter,
)
from lori.choices.methods import a_key, method
from lori.config import TrainConfig


def attach(model: PreTrainedModel, config: TrainConfig) -> nn.Module:
    """`model` with what `config.method` trains, as it starts (LoRI: B at zero, A from the seed), all else frozen.

    Raises:
        ValueError: if the method finds nothing to adapt.
    """
    row = method(config.method)
    if row.kind in ("none", "full"):
        return model.requires_grad_(row.kind == "full")
    if row.kind != "lora":
        return attach_tuner(model, config, row.kind)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        use_dora=row.use_dora,
        use_rslora=row.use_rslora,
        init_lora_weights="pissa" if row.from_svd else True,
        target_modules=list(config.projections),
        task_type="CAUSAL_LM",
    )
    peft_model = _wrap(model, lora, freeze=row.freeze_a)
    peft_model.peft_config[ADAPTER].base_model_name_or_path = config.base_model  # not this machine's folder
    if row.from_svd:
        initial = {name: tensor.cpu().clone() for name, tensor in adapter_tensors(peft_model).items()}
        return _with_origin(peft_model, {}, initial)
    key = a_key(config)
    with torch.no_grad():
        for module, layer in lora_layers(peft_model).items():
            a = weight_of(layer.lora_A)
            a.copy_(projection_a(key, module, shape_of(a)))
    return _with_origin(peft_model, {"a_key": key}, {})


def _wrap(model: PreTrainedModel, lora: LoraConfig, *, freeze: bool) -> PeftModel:
    """PEFT's model; with a frozen A its plain linears are `LoriLinear`."""
    if freeze:
        # Of this object alone: no file will show it
        lora._register_custom_module({PlainLinear: LoriLinear})  # pyright: ignore[reportArgumentType]
    peft_model = get_peft_model(model, lora)
    assert isinstance(peft_model, PeftModel)
    if freeze:
        for layer in lora_layers(peft_model).values():
            freeze_a(layer, ADAPTER)  # those that PEFT made its own layers for, too: quantised, GPT-2's Conv1D
    peft_model.train(model.training)  # PEFT's own starts in training mode: the base's dropout would stay on
    return peft_model


def _with_origin(model: PeftModel, origin: dict[str, str], initial: dict[str, Tensor]) -> PeftModel:
    """`model` that remembers where its A comes from, for the file's metadata, and PiSSA's first A and B."""
    model.origin, model.initial = origin, initial  # pyright: ignore[reportArgumentType]
    return model


def sparsify(model: nn.Module, masks: Mapping[str, Bool[Tensor, "_out _rank"]]) -> nn.Module:
    """`model` with every B sparse, in place: only entries inside `masks` are stored and train; the others stay as is.

    Raises:
        ValueError: if `masks` are not of this model's B's.
    """
    check_masks(masks, b_shapes(model))
    for module, layer in lora_layers(model).items():
        layer.lora_B[ADAPTER] = SparseB(weight_of(layer.lora_B), masks[module])
    return model


def reset_b(model: nn.Module) -> nn.Module:
    """`model` with every B at zero, in place, as before training; each A stays as it is."""
    with torch.no_grad():
        for layer in lora_layers(model).values():
            weight_of(layer.lora_B).zero_()
    return model


def masks_of(model: nn.Module) -> dict[str, Bool[Tensor, "_out _rank"]]:
    """The masks of sparse B's; empty if B is dense."""
    bs = {module: layer.lora_B[ADAPTER] for module, layer in lora_layers(model).items()}
    return {module: b.mask for module, b in bs.items() if isinstance(b, SparseB)}


def load_adapter(model: PreTrainedModel, adapter_dir: str | Path, config: TrainConfig | None = None) -> PeftModel:
    """`model` with the adapter of `adapter_dir`; with `config` it goes on training as `config.method` does.

    Adapters of PEFT 0.12 load, and so do files that hold the base's embedding with some rows added (a `<PAD>` token):
    no such row is needed here, and the embedding is left out.

    Raises:
        ValueError: if the files are damaged or edited, or do not fit `model` or `config`.
    """
    adapter_dir = Path(adapter_dir)
    kind, row = kind_of(adapter_dir), method("base" if config is None else config.method)
    if config is not None and row.kind != kind:
        raise ValueError(f"{adapter_dir} holds a {kind} adapter, which {config.method} can't go on from.")
    if kind != "lora":
        return load_tuner(model, adapter_dir, kind, config)
    with open_adapter(adapter_dir) as adapter:
        check_digests(adapter)
        check_base(adapter_dir, adapter.settings.get("base_model_name_or_path"), config)
        tensors = {name: adapter.file.get_tensor(name) for name in adapter.file.keys() if ".lora_" in name}  # noqa: SIM118
        if config is not None and row.from_svd:
            return _go_on_from_svd(model, adapter, tensors, config)
        lora = LoraConfig.from_pretrained(str(adapter_dir))
        assert isinstance(lora, LoraConfig)
        lora.inference_mode = config is None
        lora.base_model_name_or_path = None  # PEFT would warn that it takes the base's own name, which may be a folder
        peft_model = _wrap(model, lora, freeze=row.freeze_a)
        set_tensors(peft_model, adapter_dir, tensors)
        for name in adapter.extras:
            if ".lora_" not in name:
                check_untrained(peft_model, adapter, name)
        peft_model.peft_config[ADAPTER].base_model_name_or_path = adapter.settings.get("base_model_name_or_path")
        key = adapter.metadata.get("a_key")
    return _with_origin(peft_model.eval(), {"a_key": key} if key else {}, {})


def _go_on_from_svd(
    model: PreTrainedModel, adapter: AdapterFile, tensors: Mapping[str, Tensor], config: TrainConfig
) -> PeftModel:
    """The base without its largest singular values again, and the A and B that were trained: half of what is saved."""
    if adapter.metadata.get("method") != config.method:
        raise ValueError(f"{adapter.directory} is no adapter of {config.method}, which goes on from its own alone.")
    rank, alpha = adapter.settings["r"] // 2, adapter.settings["lora_alpha"] // 2
    peft_model = attach(model, replace(config, rank=rank, alpha=alpha))
    assert isinstance(peft_model, PeftModel)
    set_tensors(peft_model, adapter.directory, trained_half(tensors, rank))
    return peft_model.eval()


def num_trainable(model: nn.Module) -> int:
    """Entries that gradient descent may move; of a sparse B, those that its mask keeps."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_adapter(model: nn.Module, directory: str | Path, config: TrainConfig) -> None:
    """Write what was trained: a PEFT directory, or for `full` the whole model; nothing for `base`.

    The mask of sparse B's lies beside them: a kept entry may be 0, so B alone does not show it. The file's metadata
    say how it was made, with the digests of its A's and B's. Under torchrun every process calls this.

    Raises:
        ValueError: if `model` has no adapter although `config.method` trains one.
    """
    directory = Path(directory)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    row = method(config.method)
    if isinstance(model, PeftModel):
        tensors = adapter_tensors(model)
        settings = {**model.peft_config[ADAPTER].to_dict(), "inference_mode": True}
        if row.from_svd and model.initial:
            tensors, settings = as_lora(tensors, model.initial, settings)
        with written_whole(directory) as partial:
            write_adapter(partial, tensors, settings, _metadata(tensors, model, config))
            masks = masks_of(model)
            if masks:
                save_masks(masks, partial)
        if not masks and is_first_process():
            (directory / MASK_FILE).unlink(missing_ok=True)  # an older adapter's
    elif row.kind not in ("none", "full"):
        raise ValueError(f"This model has no adapter to save: attach {config.method} to it first (lori.attach).")
    elif row.kind == "full":
        assert isinstance(model, PreTrainedModel)
        with written_whole(directory) as partial:
            model.save_pretrained(str(partial))


def _metadata(tensors: Mapping[str, Tensor], model: PeftModel, config: TrainConfig) -> dict[str, Any]:
    made = {"method": config.method, "domain": config.domain, "seed": config.seed}
    layers = lora_layers(model)
    if not layers:
        return {**made, "sha256": digest_of_all(tensors)}
    digests = {
        name: digest(tensors[key] for key in sorted(tensors, key=module_name) if factor in key)
        for name, factor in (("a_sha256", LORA_A), ("b_sha256", LORA_B))
    }
    origin = model.origin if method(config.method).freeze_a else {}  # a trained A is not the seed's
    scalings = {layer.scaling[ADAPTER] for layer in layers.values()}  # several with rank_pattern or alpha_pattern
    return {**made, "scaling": scalings.pop() if len(scalings) == 1 else None, **origin, **digests}


def apply_adapter(model: PreTrainedModel, adapter_dir: str | Path) -> PreTrainedModel:
    """`model` with the adapter merged into its weights; which kind it is, its files say."""
    adapter_dir = Path(adapter_dir)
    if (adapter_dir / "adapter_config.json").exists():
        return load_adapter(model, adapter_dir).merge_and_unload()
    if (adapter_dir / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(adapter_dir, dtype=model.dtype, device_map=model.device).eval()
    return model


def attach_trained(model: PreTrainedModel, adapter_dir: str | Path, config: TrainConfig) -> nn.Module:
    """`model` with an adapter that goes on training (continual learning): its A, and its B not reset.

    Raises:
        ValueError: as `load_adapter`.
    """
    kind = method(config.method).kind
    if kind in ("none", "full"):
        return apply_adapter(model, adapter_dir).requires_grad_(kind == "full")
    return load_adapter(model, adapter_dir, config)
