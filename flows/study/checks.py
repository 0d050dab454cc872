"""Before a study starts: whether its base, rows, sandbox and hardware can be used."""

from pathlib import Path

from lori.base_models.resolve import architecture_of, check_device
from lori.choices.hardware import GPUS, Hardware
from lori.choices.profiles import Profile
from lori.datasets.paper_sources import check_sources
from lori.evaluation.humaneval_sandbox import check_bubblewrap
from lori.recipes.configs import eval_config


def check_usable(profile: Profile, *, plan_only: bool) -> None:
    """Whether the base model, the real rows and, where programs are run, the sandbox can be used.

    Raises:
        ValueError, RuntimeError: for the first that can't, with what to do.
    """
    if profile.base.suite == "miniature":
        return
    from lori.base_models.loading import check_base  # with torch: it reads the tokenizer

    check_base(profile.base)
    _check_context(profile)
    check_sources(profile.domains, _data_dir(profile))
    if "code" in profile.domains and not plan_only:
        check_bubblewrap()


def _check_context(profile: Profile) -> None:
    """Whether the longest row that may be and all that may follow it fit into the base model's context."""
    context = architecture_of(profile.base).context
    for domain in profile.domains:
        config = eval_config(profile, domain)
        if context is not None and config.max_length + config.max_new_tokens > context:
            raise ValueError(
                f"{profile.base.name} has a context of {context} tokens; {domain} needs {config.max_length} for a row"
                f" and {config.max_new_tokens} to generate: take a base model with a longer one."
            )


def check_hardware(hardware: Hardware, device: str, *, is_here: bool, plan_only: bool) -> None:
    """Whether the hardware makes sense and, if jobs are computed by this machine (`is_here`), is there.

    Raises:
        ValueError: if not, with what to do.
    """
    if min(hardware.num_gpus, hardware.micro_batch_tokens) < 1:
        raise ValueError(f"num_gpus and micro_batch_tokens are 1 or more, not {hardware}.")
    if hardware.gpu is None and plan_only:
        raise ValueError(f"Name the GPU to plan for, as in hardware={{'gpu': 'h100'}}. Known: {', '.join(GPUS)}.")
    if is_here:
        check_device(device, hardware.gpu)


def _data_dir(profile: Profile) -> Path | None:
    return Path(profile.data_dir) if profile.data_dir else None
