"""The files of a published adapter, checked, as one of ours."""

import shutil
from pathlib import Path

from lori.adapters.find_published import files_of, present
from lori.adapters.masks import check_masks, load_masks, num_kept, save_masks
from lori.adapters.merge_inputs import shapes_of
from lori.adapters.peft_files import AdapterFile, open_adapter
from lori.adapters.peft_settings import SETTINGS_FILE, TENSORS_FILE
from lori.base_models.hub_files import digest_of
from lori.config import PublishedConfig


def copy_published(config: PublishedConfig, adapters_dir: str | None, out: Path) -> dict[str, float]:
    """Write the adapter's files to `out`, with the mask of sparsity 0.9 as ours if there is one; what they hold.

    Raises:
        ValueError: if the files are damaged, are no LoRA adapter, or others than `config` says; if a mask is of other
            B's; if reading the mask could run code.
    """
    folder = files_of(config.name, config.revision, adapters_dir)
    if adapters_dir is not None and digest_of(present(folder)) != config.revision:
        raise ValueError(f"{config.name} in {adapters_dir} is no longer the adapter that was asked for: start again.")
    with open_adapter(folder) as adapter:
        metrics = _contents(adapter)
        for file in (SETTINGS_FILE, TENSORS_FILE):
            shutil.copyfile(folder / file, out / file)
        mask_file = folder / "masks" / "0.9_mask.pt"
        if mask_file.is_file():
            masks = load_masks(mask_file)
            check_masks(masks, {module: shape[:2] for module, shape in shapes_of(adapter).items()})
            save_masks(masks, out)
            metrics["mask_kept"] = float(num_kept(masks))
    return metrics


def _contents(adapter: AdapterFile) -> dict[str, float]:
    """Entries of B, and how many of them are not zero: of LoRI-S, those that its mask let train."""
    num_entries = sum(d_out * rank for d_out, rank, _ in shapes_of(adapter).values())
    num_nonzero = sum(int(adapter.b(module).count_nonzero()) for module in adapter.modules)
    return {"num_entries": float(num_entries), "num_trainable": float(num_nonzero)}
