"""The grid of a study: which combinations of method, data, size and settings are trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.errors import nearest
from cotd.teachers.filters import Filters, filter_problems
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS

# From here on a grid is more likely a slip than a wish.
MANY_TRIALS = 10_000


@dataclass(frozen=True)
class Cell:
    """One combination of the grid.

    Attributes:
        training: the keys of the training block that this combination sets.
        samples, filters: which of the annotations it learns from; None: all that the study's own filters keep.
    """

    method: str
    fraction: float
    size: str
    seed: int
    training: dict[str, Any] = field(default_factory=dict)
    samples: int | None = None
    filters: Filters | None = None


class Dimensions(ConfigModel):
    """Lists of values to combine. In `grid.include`, what is left out is as in the grid itself."""

    method: list[str] | None = Field(None, min_length=1)
    fraction: list[float] | None = Field(None, min_length=1, description="shares of the training split, in (0, 1]")
    size: list[str] | None = Field(None, min_length=1)
    seed: list[int] | None = Field(None, min_length=1)
    training: dict[str, list[Any]] = Field(
        default_factory=dict, description="key of the training block → values, as in {rationale_weight: [0, 0.5, 1]}"
    )
    samples: list[int] | None = Field(
        None, min_length=1, description="learn from the first n of the teacher's samples of each review"
    )
    filters: list[Filters] | None = Field(
        None, min_length=1, description="lists of filters, each in place of teacher.filters; [] is none"
    )

    @field_validator("method")
    @classmethod
    def known_methods(cls, names: list[str] | None) -> list[str] | None:
        known = ", ".join(METHODS)
        wrong = [f"unknown method '{n}'; known: {known}.{nearest(n, list(METHODS))}" for n in names or [] if n not in METHODS]
        if wrong:
            raise ValueError("; ".join(wrong))
        return names

    @field_validator("fraction")
    @classmethod
    def fractions_in_range(cls, fractions: list[float] | None) -> list[float] | None:
        wrong = [f"fraction {f} is outside (0, 1]" for f in fractions or [] if not 0 < f <= 1]
        if wrong:
            raise ValueError("; ".join(wrong) + "; write 10 % as 0.1")
        return fractions

    @field_validator("training")
    @classmethod
    def training_values(cls, training: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return checked_training(training)

    @field_validator("samples")
    @classmethod
    def some_samples(cls, samples: list[int] | None) -> list[int] | None:
        if any(n < 1 for n in samples or []):
            raise ValueError("at least 1 sample a review")
        return samples

    @field_validator("filters")
    @classmethod
    def known_filters(cls, lists: list[Filters] | None) -> list[Filters] | None:
        if wrong := [problem for filters in lists or [] for problem in filter_problems(filters)]:
            raise ValueError("; ".join(wrong))
        return lists

    def over(self, other: Dimensions) -> Dimensions:
        """These dimensions, with those of `other` where nothing is said here."""
        given = {k: v for k in Dimensions.model_fields if k != "training" and (v := getattr(self, k)) is not None}
        training = {**other.training, **self.training}
        kept = {k: getattr(other, k) for k in Dimensions.model_fields}
        return Dimensions.model_construct(**{**kept, **given, "training": training})

    def count(self) -> int:
        lists = [self.method, self.fraction, self.size, self.seed, self.samples, self.filters, *self.training.values()]
        return prod(len(values) for values in lists if values is not None)

    def cells(self) -> Iterator[Cell]:
        """Every combination of the values."""
        names = list(self.training)
        samples: list[int | None] = [*self.samples] if self.samples else [None]
        filters: list[Filters | None] = [*self.filters] if self.filters else [None]
        plain = (self.method or [], self.fraction or [], self.size or [], self.seed or [])
        for method, fraction, size, seed, n, chosen, *values in itertools.product(
            *plain, samples, filters, *self.training.values()
        ):
            yield Cell(method, float(fraction), size, seed, dict(zip(names, values, strict=True)), n, chosen)


class Exclusion(ConfigModel):
    """Combinations to leave out: those that have, in every dimension named, one of its values."""

    method: list[str] | None = None
    fraction: list[float] | None = None
    size: list[str] | None = None
    seed: list[int] | None = None
    samples: list[int] | None = None
    training: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def one_value_is_a_list(cls, plain: Any) -> Any:
        """`size: large` is short for `size: [large]`."""
        if not isinstance(plain, dict):
            return plain
        listed = {k: v if k == "training" else as_list(v) for k, v in plain.items()}
        if isinstance(listed.get("training"), dict):
            listed["training"] = {k: as_list(v) for k, v in listed["training"].items()}
        return listed

    @model_validator(mode="after")
    def names_something(self) -> Exclusion:
        if not self.model_fields_set:
            raise ValueError("names no dimension, and so would leave out everything")
        return self

    @field_validator("training")
    @classmethod
    def training_values(cls, training: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return checked_training(training)

    def matches(self, cell: Cell) -> bool:
        plain = {k: getattr(self, k) for k in ("method", "fraction", "size", "seed", "samples")}
        return all(getattr(cell, k) in values for k, values in plain.items() if values is not None) and all(
            key in cell.training and cell.training[key] in values for key, values in self.training.items()
        )


class GridConfig(Dimensions):
    """Every combination of the lists, less `exclude`, and `include`."""

    method: list[str] = Field(min_length=1)
    fraction: list[float] = Field(min_length=1, description="shares of the training split, in (0, 1]")
    size: list[str] = Field(min_length=1)
    seed: list[int] = Field(min_length=1)
    exclude: list[Exclusion] = Field(
        default_factory=list, description="combinations to leave out, as in [{size: large, fraction: [0.1, 0.5]}]"
    )
    include: list[Dimensions] = Field(
        default_factory=list, description="further grids; what one leaves out is as in the grid itself, before `exclude`"
    )

    @model_validator(mode="after")
    def something_is_left(self) -> GridConfig:
        if self.count() <= MANY_TRIALS and not any(True for _ in self.all_cells()):
            raise ValueError("exclude leaves no combination")
        return self

    def all_cells(self) -> Iterator[Cell]:
        """Every combination to train; one may be there twice."""
        for cell in self.cells():
            if not any(e.matches(cell) for e in self.exclude):
                yield cell
        for further in self.include:
            yield from further.over(self).cells()

    def count_all(self) -> int:
        """How many combinations there are at most, without making them."""
        return self.count() + sum(further.over(self).count() for further in self.include)

    def all_values(self, dimension: str) -> list[Any]:
        """The values of a dimension in the whole grid, in the order in which they are first named."""
        lists: Iterable[Sequence[Any] | None] = (getattr(d, dimension) for d in (self, *self.include))
        return list(dict.fromkeys(value for values in lists for value in values or []))


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


def checked_training(training: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Values of training keys as the training block has them.

    Raises:
        ValueError: no such key, or a value that it cannot have.
    """
    if wrong := [problem for key, values in training.items() for problem in training_problems(key, values)]:
        raise ValueError("; ".join(wrong))
    return {key: [training_value(key, value) for value in values] for key, values in training.items()}


def training_problems(key: str, values: Any, fixed: Mapping[str, str] = {"preset": "resolve it to its keys"}) -> list[str]:
    """What is wrong with values of a training key.

    Args:
        fixed: keys that cannot vary → what to do instead.
    """
    known = [k for k in TrainingConfig.model_fields if k not in fixed]
    if key in fixed:
        return [f"'{key}' cannot vary: {fixed[key]}"]
    if key not in known:
        return [f"no training key '{key}'.{nearest(key, known)} There are: {', '.join(known)}"]
    if not isinstance(values, list) or not values:
        return [f"{key} needs a list of values"]
    problems = []
    for value in values:
        try:
            training_value(key, value)
        except ValidationError as error:
            problems.append(f"{key} cannot be {value!r}: {error.errors()[0]['msg']}")
    return problems


def training_value(key: str, value: Any) -> Any:
    """A value of a training key as the training block has it: 1 becomes 1.0 where a fraction is meant."""
    return getattr(TrainingConfig.model_validate({key: value}), key)
