"""Adapter files from outside: their names, the settings, and safetensors to open. None of it needs torch."""

import json
from pathlib import Path
from typing import Any

TENSORS_FILE, SETTINGS_FILE = "adapter_model.safetensors", "adapter_config.json"


def read_settings(directory: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        ValueError: if it is missing, no JSON, or of another kind of adapter than LoRA.
    """
    path = directory / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{directory} is no PEFT adapter: it has no {SETTINGS_FILE}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Save or download the adapter again.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: it holds no settings. Save or download the adapter again.")
    if settings.get("peft_type") == "LORA" and (missing := {"r", "lora_alpha", "target_modules"} - settings.keys()):
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}: without it the adapter can't be scaled or placed."
        )
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path} is of a {settings.get('peft_type')} adapter; only LORA has the factors A and B.")
    return settings
