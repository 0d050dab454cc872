"""What a result is: frozen configs.

They hold names and numbers only: everything that can change a result is a field here and therefore part of its key.
What may differ between two machines that compute the same thing is elsewhere; it is in no key.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """The rows of one split of a domain. `suite` is the world that they come from: `miniature` is the scale model's.

    One split each, so that a longer test trains nothing again. `num_rows` None is every row, else the first ones.
    `prompt_style` and `sha256` are the paper's suite's: how prompts are written (`lori/datasets/prompts.py`), and the
    digest of all rows, so that other data are another result wherever they come from.
    """

    suite: str
    domain: str
    split: str
    num_rows: int | None
    prompt_style: str = "plain"
    sha256: str | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `num_epochs` and the summed-token loss are the paper's (appendix, hyper-parameters).

    `add_bos` puts the begin token before a prompt where the tokenizer has the habit. `dtype` is the base's while an
    adapter trains on it; a base that trains itself (`full`) is in fp32 and computes in `dtype`. `shared_a` and
    `fresh_a` are departures from the paper's A, one a domain: see `methods.a_key`. `variant` says in the names of what
    is trained how it departs from the usual row of its method; here as in the configs below.
    """

    base_model: str
    projections: tuple[str, ...]
    method: str
    domain: str
    rank: int
    alpha: int
    learning_rate: float
    num_epochs: int
    batch_size: int
    max_length: int
    max_prompt_length: int
    seed: int
    add_bos: bool = True
    dtype: str = "float32"
    shared_a: bool = False
    fresh_a: bool = False
    variant: str = ""


@dataclass(frozen=True)
class MaskConfig:
    """Which entries of B may train: `sparsity` is the share of zeros, `scope` names the entries that compete."""

    sparsity: float
    scope: str
    variant: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class RandomMaskConfig(MaskConfig):
    """A control: as many entries of each group at random places, another choice for each `draw`."""

    draw: str


@dataclass(frozen=True)
class MergeConfig:
    """How adapters become one. `density` is PEFT's word: the share kept by magnitude, ties and dare. dare draws.

    With `match_norms` each adapter's whole update is first scaled to the mean of all their Frobenius norms.
    """

    base_model: str
    method: str
    weights: tuple[float, ...]
    density: float
    seed: int
    match_norms: bool
    variant: str = ""


@dataclass(frozen=True)
class PublishedConfig:
    """An adapter that was trained elsewhere: a hub id and its commit, or a folder's name and its files' digest."""

    name: str
    revision: str
    base_model: str


@dataclass(frozen=True)
class EvalConfig:
    """One benchmark. `num_samples` completions a prompt; greedy where `temperature` is 0.

    `batch_size` sequences are computed at once: it is identity, as it moves the last bits. Prompts get `add_bos` and
    are cut as in training (`data.encode_prompts`). `dtype` is that of base and merged weights.
    """

    domain: str
    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    batch_size: int
    max_length: int
    max_prompt_length: int
    seed: int
    add_bos: bool = True
    dtype: str = "float32"


@dataclass(frozen=True)
class CompareConfig:
    """Scores of several rows of a table, with intervals, and the differences between rows (`resampling.py`).

    `rows`, `domains` and `seeds` say of each score, in their order, where it belongs; a domain may be over-refusal, of
    safety's scores. Within a row, scores of one domain and seed are averaged item by item. `pairs` are rows to
    compare, `<row> − <row>` each, at the seeds that both have, and pairs of pairs, `<pair> less <pair>`, after those.
    """

    rows: tuple[str, ...]
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    pairs: tuple[str, ...]
    num_resamples: int


@dataclass(frozen=True)
class InterferenceConfig:
    """Which adapters are compared pair by pair (`lori/adapters/interference.py`): one method's, of these domains."""

    method: str
    domains: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class TrainRuntime:
    """How a training runs on its machine: nothing here moves a result by more than the last bits of its sums.

    A batch is computed in parts of at most `micro_batch_tokens`, padding included; with `gradient_checkpointing` a
    layer's activations are computed again in the backward pass. With a `checkpoint_dir` it goes on from the newest
    checkpoint there, and writes one every `checkpoint_every` steps.
    """

    micro_batch_tokens: int = 4096
    gradient_checkpointing: bool = False
    checkpoint_dir: str | None = None
    checkpoint_every: int = 100
