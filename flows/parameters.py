"""The parameters of flows: what each takes, with the names that can be chosen, and what it means.

Prefect's form and `python -m flows NAME --help` show both. What a flow is not told is its profile's.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lori.choices.domains import DOMAINS
from lori.choices.hardware import Hardware
from lori.choices.merge_methods import MERGE_METHODS
from lori.choices.methods import METHODS
from lori.choices.profiles import PROFILES
from lori.choices.scopes import SCOPES
from lori.datasets.prompts import PROMPT_STYLES

TABLES = ("single", "merging", "continual")  # of the paper

if TYPE_CHECKING:
    Profiles = DomainName = MethodName = MergeName = ScopeName = StyleName = TableName = str
else:
    Profiles, DomainName, MethodName = Literal[*PROFILES], Literal[*DOMAINS], Literal[*METHODS]
    MergeName, ScopeName, StyleName = Literal[*MERGE_METHODS], Literal[*SCOPES], Literal[*PROMPT_STYLES]
    TableName = Literal[*TABLES]

Positive = Annotated[int, Field(ge=1)]

ProfileName = Annotated[
    Profiles, Field(description="Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).")
]
Base = Annotated[
    str | None, Field(description="A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.")
]
Domains = Annotated[list[DomainName] | None, Field(description="Rows of DOMAINS (lori/choices/domains.py).")]
Methods = Annotated[list[MethodName] | None, Field(description="Rows of METHODS (lori/choices/methods.py).")]
Tables = Annotated[
    list[TableName] | None,
    Field(description="Tables to compute, all where left out. The first takes `methods`; the others, theirs of them."),
]
MergeMethods = Annotated[
    list[MergeName] | None, Field(description="Rows of MERGE_METHODS (lori/choices/merge_methods.py).")
]
Weights = Annotated[list[float] | None, Field(description="Weights of a merge, one per domain, in their order.")]
Density = Annotated[float | None, Field(description="Share of entries that magnitude, ties and dare keep.")]
Rank = Annotated[int | None, Field(description="Rank r of the adapters; α stays 2 r.")]
Sparsity = Annotated[
    float | None, Field(description="Share of B's entries that a mask leaves at zero, 0.9 in the paper.")
]
Scope = Annotated[ScopeName | None, Field(description="Which entries compete for the mask (lori/choices/scopes.py).")]
Seeds = Annotated[list[int] | None, Field(description="One table row is the mean over these.")]
LearningRates = Annotated[
    dict[MethodName, float] | None,
    Field(description="In place of the recipe's, by method, such as those that `sweep` chose."),
]
Controls = Annotated[
    bool,
    Field(description="Also methods that differ in one thing from the paper's; merges of what the claims are about."),
]
NumControlSeeds = Annotated[
    Positive | None, Field(description="The controls have the first so many seeds; all where left out.")
]
PromptStyle = Annotated[StyleName | None, Field(description="How real rows are written (lori/datasets/prompts.py).")]
DataDir = Annotated[
    str | None, Field(description="Folder of the real datasets; `LORI_DATA`, or the hub, where left out.")
]
BatchSize = Annotated[Positive | None, Field(description="Sequences that are generated at once.")]
Machine = Annotated[
    Hardware | None, Field(description="GPU, memory and how training is to fit it (lori/choices/hardware.py).")
]
Refresh = Annotated[
    list[str] | None,
    Field(description="Cells to compute again: `all`, steps, or first words of titles such as `train lora math`."),
]
PlanOnly = Annotated[bool, Field(description="Say what it would take and compute nothing.")]
PushTo = Annotated[
    str | None,
    Field(description="User or organisation of the hub that gets the adapters, each in a private repository."),
]
# Of `ablate`: an empty list is none of that setting
Sparsities = Annotated[
    list[float] | None, Field(description="Shares of B's entries that a mask leaves at zero, from 0 to below 1.")
]
Scopes = Annotated[list[ScopeName] | None, Field(description="Rows of SCOPES: which entries compete for the mask.")]
Ranks = Annotated[list[int] | None, Field(description="Ranks r of the adapters; α stays 2 r.")]
CalibrationRows = Annotated[
    list[int] | None,
    Field(description="Numbers of rows that the dense adapter trains on whose B gives the mask."),
]
Curve = Annotated[list[float] | None, Field(description="Weights of all adapters in a merge; [] is no merges.")]
ContinualRows = Annotated[
    list[int] | None,
    Field(description="Numbers of rows of the new domain, a batch or more; [] is no continual learning."),
]
# Of `sweep`
Factors = Annotated[
    list[float] | None,
    Field(description="What each method's own rate is multiplied by; SWEEP_FACTORS where left out."),
]
# Of `published`
Adapters = Annotated[list[str], Field(description="Hub ids, or names of folders in `adapters_dir`.")]
AdaptersDir = Annotated[str | None, Field(description="The folder that holds them; the hub where left out.")]
# Of `scout`
Source = Annotated[str | None, Field(description="YAML file of candidates, as base-models.yaml; none where empty.")]
BaseModels = Annotated[
    list[str] | None,
    Field(description="More candidates: rows of BASE_MODELS, hub ids `org/name` or `org/name@revision`, or folders."),
]
Collection = Annotated[str | None, Field(description="Slug of a collection on the hub, the end of its address.")]
Author = Annotated[
    str | None, Field(description="A user or organisation on the hub: its newest text generators are candidates.")
]
Search = Annotated[str | None, Field(description="Words in the names of text generators on the hub.")]
MaxBillions = Annotated[float, Field(description="Largest size, in billions of parameters.")]
Licences = Annotated[
    list[str] | None,
    Field(description="The hub's names of licences that will do, such as apache-2.0; any where left out."),
]
Limit = Annotated[Positive, Field(description="Papers that scouts may have waiting and running at once.")]
MaxAttempts = Annotated[Positive, Field(description="How often a paper that fails is started.")]
DryRun = Annotated[bool, Field(description="Say what would be started, and start nothing.")]


def meaning(annotation: Any) -> str:
    """The description in the annotation of a parameter."""
    return next(found.description for found in annotation.__metadata__ if getattr(found, "description", None))
