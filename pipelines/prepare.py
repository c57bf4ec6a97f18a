"""The first stage of a study: its examples, loaded, checked and written once for all later stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotd import assets
from cotd.config.digest import digest
from cotd.data.config import SPLITS
from cotd.data.examples import Examples
from cotd.data.files import file_digest, find_files, names_files
from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.storage.sync import sync_study
from cotd.storage.urls import is_remote
from cotd.study.config import StudyConfig
from cotd.utils.files import read_json, write_json
from cotd.utils.parquet import write_blocks
from pipelines.annotate.checks import gold_problems, quarantine_warnings

# Raise it when the same source is turned into other examples: those that studies have prepared are then made anew.
FORMAT = 1
MAX_REASONS = 100  # kept by name; the others are counted together


@dataclass(frozen=True)
class Prepared:
    """A study's examples, and what became of its source's rows.

    Attributes:
        path: the Parquet file, with the columns of `ExampleTable.blocks`.
        digest: of all texts, options, labels, splits and groups.
        counts: `rows` read, `repeats` dropped, `quarantined`, and examples by split as `kept_train` and so on; with
            `data.unlabelled` also how many of them are `unlabelled` and how many such texts are left out, as `unlabelled_held_out`
            (they are in validation or test) and `unlabelled_repeats`.
        labels: split → gold label → number of examples.
        reasons: why rows are quarantined → number of rows.
    """

    path: Path
    digest: str
    counts: dict[str, int]
    labels: dict[str, dict[str, int]]
    reasons: Counter[str]

    @property
    def splits(self) -> dict[str, int]:
        """Split → number of examples."""
        return {split: self.counts[f"kept_{split}"] for split in SPLITS}

    @property
    def quarantined(self) -> int:
        """Number of quarantined rows."""
        return self.counts["quarantined"]


@sync_study
def prepare(config: StudyConfig) -> Prepared:
    """Loads, checks and writes the study's examples to `data/examples-DIGEST.parquet`, unless they are there.

    Raises:
        CotdError: the source does not exist or has no usable rows, or gold labels that the study's methods need are missing.

    Example:
        >>> prepared = cotd.prepare(study)
        >>> list(prepared.splits), prepared.path.suffix
        (['train', 'validation', 'test'], '.parquet')
    """
    return prepare_here(config)


def prepare_here(config: StudyConfig) -> Prepared:
    """`prepare` inside a stage, which has synchronised the study's folder."""
    folder = config.directory / "data"
    inputs = inputs_digest(config)
    prepared = (inputs and read_prepared(folder, inputs)) or write_prepared(
        load_examples(config.data, config.task), folder, inputs
    )
    if problems := gold_problems(config, prepared.labels):
        warnings = quarantine_warnings(prepared.counts["rows"], prepared.reasons)
        raise CotdError(*problems[:-1], " ".join([problems[-1], *warnings]))
    return prepared


def inputs_digest(config: StudyConfig) -> str | None:
    """A digest of all that decides the examples; None for hub data sets and URLs, which only loading can tell to be the same."""
    data = config.data
    sources = [data.source] if isinstance(data.source, str) else list(data.source.values())
    sources += [data.unlabelled] if data.unlabelled else []
    contents: list[Any] = []
    for source in sources:
        if assets.is_embedded(source):
            contents.append(assets.get_asset(source).version)
        elif names_files(source) and not is_remote(source):
            contents.append([(Path(file).name, file_digest(file)) for file in find_files(source)])
        else:
            return None
    return digest([FORMAT, config.task.to_dict(), data.model_dump(exclude={"noun"}), contents])


def read_prepared(folder: Path, inputs: str | None) -> Prepared | None:
    """What an earlier run prepared from the same inputs; None where there is none."""
    try:
        made = read_json(folder / "prepared.json")
    except (OSError, ValueError):
        return None
    if made["inputs"] != inputs or not (path := folder / made["path"]).is_file():
        return None
    return Prepared(path, made["digest"], made["counts"], made["labels"], Counter(made["reasons"]))


def write_prepared(examples: Examples, folder: Path, inputs: str | None) -> Prepared:
    path = folder / f"examples-{examples.digest()}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_blocks(examples.rows.blocks(), path, examples.rows.schema)
    labels = {split: examples.rows.split(split).label_counts() for split in SPLITS}
    reasons = Counter(dict(examples.quarantined.counts().most_common(MAX_REASONS)))
    if rest := examples.counts["quarantined"] - reasons.total():
        reasons["other reasons"] = rest
    prepared = Prepared(path, examples.digest(), examples.counts, labels, reasons)
    write_json(folder / "prepared.json", {"inputs": inputs, **vars(prepared), "path": path.name})
    return prepared
