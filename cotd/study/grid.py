"""The grid of a study: which combinations of method, data, size and settings are trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.errors import nearest, unknown
from cotd.teachers.filters import Filters
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS

# A grid of more is more likely a mistake than intended.
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


def known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return name


def fraction_in_range(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} is outside (0, 1]; write 10 % as 0.1")
    return fraction


Methods = Annotated[list[Annotated[str, AfterValidator(known_method)]], Field(min_length=1)]
Fractions = Annotated[
    list[Annotated[float, AfterValidator(fraction_in_range)]],
    Field(min_length=1, description="shares of the training split, in (0, 1]"),
]
Sizes = Annotated[list[str], Field(min_length=1)]
Seeds = Annotated[list[int], Field(min_length=1)]


class Dimensions(ConfigModel):
    """Lists of values to combine. In `grid.include`, a dimension that is left out is as in the grid itself."""

    method: Methods | None = None
    fraction: Fractions | None = None
    size: Sizes | None = None
    seed: Seeds | None = None
    samples: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="learn from the first n of the teacher's samples of each example"
    )
    filters: list[Filters] | None = Field(
        None, min_length=1, description="lists of filters, each in place of teacher.filters; [] is none"
    )
    training: dict[str, list[Any]] = Field(
        default_factory=dict, description="key of the training block → values, as in {rationale_weight: [0, 0.5, 1]}"
    )

    @field_validator("training")
    @classmethod
    def training_values(cls, training: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if problems := [problem for key, values in training.items() for problem in training_problems(key, values)]:
            raise ValueError("; ".join(problems))
        return {key: [training_value(key, value) for value in values] for key, values in training.items()}

    def lists(self) -> dict[str, list[Any]]:
        """Dimension → its values; without `training`, and without what is left out."""
        names = (name for name in Dimensions.model_fields if name != "training")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    def over(self, other: Dimensions) -> Dimensions:
        """These dimensions, with those of `other` where these leave one out."""
        merged: dict[str, Any] = {**other.lists(), **self.lists(), "training": {**other.training, **self.training}}
        return Dimensions.model_construct(**merged)

    def count(self) -> int:
        return prod(map(len, [*self.lists().values(), *self.training.values()]))

    def cells(self) -> Iterator[Cell]:
        """Every combination of the values."""
        lists = self.lists()
        for values in itertools.product(*lists.values(), *self.training.values()):
            settings = dict(zip(self.training, values[len(lists) :], strict=True))
            yield Cell(**dict(zip(lists, values, strict=False)), training=settings)


class Exclusion(Dimensions):
    """Combinations to leave out: those that have, in every dimension named, one of its values."""

    @model_validator(mode="before")
    @classmethod
    def one_value_is_a_list(cls, plain: Any) -> Any:
        """`size: large` is short for `size: [large]`."""
        if not isinstance(plain, dict):
            return plain
        training = plain.get("training")
        listed = {"training": {k: as_list(v) for k, v in training.items()}} if isinstance(training, dict) else {}
        return {**{k: v if k == "training" else as_list(v) for k, v in plain.items()}, **listed}

    @model_validator(mode="after")
    def names_something(self) -> Exclusion:
        if not self.lists() and not self.training:
            raise ValueError("empty exclude entry: name at least one dimension, such as size")
        return self

    def matches(self, cell: Cell) -> bool:
        return all(getattr(cell, name) in values for name, values in self.lists().items()) and all(
            key in cell.training and cell.training[key] in values for key, values in self.training.items()
        )


class GridConfig(Dimensions):
    """Every combination of the lists, less `exclude`, and `include`."""

    method: Methods
    fraction: Fractions
    size: Sizes
    seed: Seeds
    exclude: list[Exclusion] = Field(
        default_factory=list, description="combinations to leave out, as in [{size: large, fraction: [0.1, 0.5]}]"
    )
    include: list[Dimensions] = Field(
        default_factory=list, description="further grids; a dimension that one leaves out is as in the grid, before `exclude`"
    )

    @model_validator(mode="after")
    def something_is_left(self) -> GridConfig:
        if self.count() <= MANY_TRIALS and not any(True for _ in self.all_cells()):
            raise ValueError("exclude leaves no combination")
        return self

    def all_cells(self) -> Iterator[Cell]:
        """Every combination to train; one may occur twice."""
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
        values = (value for part in (self, *self.include) for value in getattr(part, dimension) or [])
        return list(dict.fromkeys(values))


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


def training_problems(key: str, values: Any, fixed: Mapping[str, str] = {"preset": "resolve it to its keys"}) -> list[str]:
    """What is wrong with values of a training key.

    Args:
        fixed: keys that cannot vary → what to do instead.
    """
    if key in fixed:
        return [f"'{key}' cannot vary: {fixed[key]}"]
    known = [k for k in TrainingConfig.model_fields if k not in fixed]
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
