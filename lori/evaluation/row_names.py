"""Names of the rows that are compared: a record in the code, a text in configs, MLflow and the report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

REFERENCE = "lora"  # the method whose number of trainable entries is 100 %
MEAN = "mean"  # over domains
OVER_REFUSAL = "over-refusal"  # a measure of safety's harmless requests, beside the domains' own
# What continual learning measures: the first domain before and after the new one, and the new one
BEFORE, KEPT, LEARNED = "before", "kept", "learned"
MINUS, LESS = " − ", " less "  # one row less another; one such difference less another
THEN = " → "  # a first domain, then a new one
WEIGHT = "weight"  # the setting of merges whose adapters all have another one
LABELS = ("method", "merge", "setting", "value")
TITLES = {"base": "the base", "full": "full fine-tuning", "lora": "LoRA", "dora": "DoRA"}
TITLES |= {"lori-d": "LoRI-D", "lori-s": "LoRI-S"}
CONTROLS = {  # by the end of a control's name, what it changes
    "-random-mask": "with a random mask",
    "-trained-a": "with a trained A",
    "-fresh-a": "with an A drawn anew",
    "-shared-a": "with one A for all domains",
    "-disjoint": "with disjoint masks",
}
MEASURED = {
    BEFORE: "on the first domain before another",
    KEPT: "on the first domain after another",
    LEARNED: "on the new domain",
}


@dataclass(frozen=True)
class RowName:
    """A row of the paper's tables, or a difference of rows. `str` and `parse` are each other's inverse.

    | Text | Fields beside `method` |
    | --- | --- |
    | `lori-s` | |
    | `lori-s concat` | `merge` |
    | `lori-s sparsity 0.5` | `setting`, `value` |
    | `lori-s weight of concat 0.5` | `setting`, `merge`, `value` |
    | `lori-s safety → nlu, rows 96` | `first_domain`, `new_domain`, `setting`, `value` |
    | `lori-s kept` | `measured`, a mean over new domains |
    | `lori-s kept nlu` | `measured`, `new_domain` |
    | `lori-s concat over-refusal` | `merge`, `is_over_refusal` |
    | `lori-s − lora` | `minus` |
    | `lori-s concat − lori-s less lora concat − lora` | `merge`, `minus`, `less` |
    """

    method: str
    merge: str = ""
    setting: str = ""
    value: str = ""
    first_domain: str = ""
    new_domain: str = ""
    measured: str = ""
    is_over_refusal: bool = False
    minus: "RowName | None" = None
    less: "RowName | None" = None

    def __str__(self) -> str:
        if self.less:
            return f"{replace(self, less=None)}{LESS}{self.less}"
        if self.minus:
            return f"{replace(self, minus=None)}{MINUS}{self.minus}"
        new_domain = self.new_domain if self.measured else ""
        over_refusal = OVER_REFUSAL if self.is_over_refusal else ""
        words = (self.method, self.changed, self.value, self.measured, new_domain, over_refusal)
        return " ".join(filter(None, words))

    @property
    def in_words(self) -> str:
        """For readers of the paper: `LoRI-D, compared with LoRA, both merged by concat`."""
        one, other = self.sides if self.minus else (self, None)
        title, place = _title(one.method), one._place
        if self.less:
            once = "once " if one.merge else ""
            return f"{title}'s change {once}{place}, compared with {_title(self.less.method)}'s"
        if not other:
            return f"{title} {place}".rstrip()
        if place == other._place:
            return f"{title}, compared with {_title(other.method)}" + (f", both {place}" if place else "")
        return f"{one.in_words}, compared with {other.in_words}"

    @property
    def _place(self) -> str:
        """What is the same of all methods, in words."""
        words = ["in over-refusal"] if self.is_over_refusal else []
        if self.setting:
            words.append(f"with {self.changed} {self.value}")
        elif self.merge:
            words.append(f"merged by {self.merge}")
        elif self.measured:
            words.append(MEASURED[self.measured] + (f" ({self.new_domain})" if self.new_domain else ""))
        return " ".join(words)

    @property
    def changed(self) -> str:
        """The setting as tables show it: `sparsity`, `weight of concat`, `safety → nlu, rows`; of a merge its name."""
        if self.first_domain:
            return f"{self.first_domain}{THEN}{self.new_domain}, {self.setting}"
        return " of ".join(filter(None, (self.setting, self.merge)))

    @property
    def sides(self) -> "tuple[RowName, RowName]":
        """What a difference is of: a and b of `a − b`; a − b and c − d of `a − b less c − d`."""
        if self.less:
            return replace(self, less=None), self.less
        assert self.minus
        return replace(self, minus=None), self.minus

    @classmethod
    def parse(cls, text: str) -> "RowName":
        """The record of a text that `str` gave."""
        for sign, field in ((LESS, "less"), (MINUS, "minus")):
            if sign in text:
                one, other = map(cls.parse, text.split(sign))
                return replace(one, **{field: other})
        row, over_refusal, _ = text.partition(f" {OVER_REFUSAL}")
        method, *words = row.split(" ")
        return cls(method, is_over_refusal=bool(over_refusal), **_fields(words))

    @classmethod
    def of(cls, labels: Mapping[str, Any]) -> "RowName":
        """The row of a table that has these labels: `method`, and `merge`, or `setting` and `value`."""
        return cls.parse(" ".join(labels[name] for name in LABELS if name in labels))


def _title(method: str) -> str:
    for ending, changed in CONTROLS.items():
        if method.endswith(ending):
            return f"{_title(method.removesuffix(ending))} {changed}"
    return TITLES.get(method, method)


def _fields(words: list[str]) -> dict[str, Any]:
    match words:
        case []:
            return {}
        case [measured, *new] if measured in (BEFORE, KEPT, LEARNED):
            return {"measured": measured, "new_domain": " ".join(new)}
        case [merge]:
            return {"merge": merge}
        case [first, "→", new, setting, value]:
            return {"first_domain": first, "new_domain": new.rstrip(","), "setting": setting, "value": value}
        case [setting, "of", merge, value]:
            return {"setting": setting, "merge": merge, "value": value}
        case _:
            return {"setting": " ".join(words[:-1]), "value": words[-1]}


def continual_setting(first: str, new: str) -> str:
    """What an ablation of continual learning changes: how many rows of `new` are trained on after `first`."""
    return RowName("", first_domain=first, new_domain=new, setting="rows").changed


def merge_setting(name: str, merge: str) -> str:
    """What an ablation of a merge changes: the `WEIGHT` of its adapters, how many `adapters`, their `norms`."""
    return RowName("", setting=name, merge=merge).changed


def domain_of(measure: str) -> str:
    """The domain whose answers a measure is of: that of its name, but for over-refusal."""
    return "safety" if measure == OVER_REFUSAL else measure
