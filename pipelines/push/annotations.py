"""A study's annotations on a hub: one Parquet file with texts and gold labels, and a data set card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cotd.errors import CotdError
from cotd.storage.hub import cell, push, without_places
from cotd.teachers.annotations import ANNOTATION_COLUMNS, SCHEMA
from cotd.teachers.student.model import whose_student
from cotd.tracking.annotations import annotation_metrics
from cotd.utils.files import read_json, write_text
from cotd.utils.parquet import parquet_writer, read_blocks
from pipelines.annotate.files import AnnotationFiles

FILE = "annotations.parquet"
COLUMNS = {
    "example_id": "identifies the text; a text has one row for each sample and kind of rationale",
    "text": "the text",
    "gold_label": "the label of the source; null if it has none",
    "sample": "number of the sample, from 0",
    "label": "the teacher's label; the gold label where `gold_conditioned`",
    "label_probability": "the teacher's probability of its label, or the share of its samples that agree; null if not known",
    "probabilities": "the teacher's probabilities of all labels, in the order of the task; null if not known",
    "rationale": "the teacher's rationale, or empty",
    "rationale_logprob": "log probability of the rationale; null if not known",
    "finish_reason": "why the teacher stopped: `stop` or `length`",
    "gold_conditioned": "whether the teacher was given the gold label to write a rationale for",
    "teacher": "the teacher",
    "revision": "its weights and how they were used",
    "prompt_hash": "changes with the prompts; null for imported annotations",
    "prompt_tokens": "tokens read",
    "output_tokens": "tokens written",
    "error": "why the row is quarantined; null for usable rows",
}
PLACES = ["teacher", "revision", "error"]  # may name paths or endpoints


def find_annotations(folder: Path) -> tuple[AnnotationFiles, Path]:
    """The annotations of a study's folder, and the study's prepared examples.

    Raises:
        CotdError: one of them is missing.
    """
    files, prepared = AnnotationFiles(folder / "annotations"), folder / "data" / "prepared.json"
    problems = []
    if not files.summary.is_file():
        problems.append(f"'{folder}' holds no annotations. Run `cotd annotate CONFIG` first.")
    if not prepared.is_file():
        problems.append(f"'{folder}' holds no prepared examples. Run `cotd prepare CONFIG` first.")
    if problems:
        raise CotdError(*problems)
    return files, prepared.with_name(read_json(prepared)["path"])


def push_annotations(study: Path, name: str, private: bool = False, dry_run: bool = False) -> str:
    """Pushes a study's annotations; returns a sentence that says what happened.

    Args:
        study: the study's folder.
        name: ORG/NAME on the hub.

    Raises:
        CotdError: there are no annotations, or not of the prepared examples; the push failed: see `cotd.storage.hub.push`.
    """
    files, examples = find_annotations(study)
    texts = pd.read_parquet(examples, columns=["id", "text", "label"]).set_index("id")

    def write(folder: Path) -> None:
        write_annotations(files, texts, folder / FILE)
        write_text(folder / "README.md", dataset_card(read_json(files.summary), name))

    return push(name, "dataset", write, private, dry_run)


def write_annotations(files: AnnotationFiles, texts: pd.DataFrame, path: Path) -> None:
    """Writes the annotations with the text and gold label of each, a block at a time."""
    schema = pa.schema([SCHEMA.field(c) if c in SCHEMA.names else pa.field(c, pa.string()) for c in COLUMNS])
    with parquet_writer(path, schema) as write_rows:
        for block in read_blocks(files.annotations, ANNOTATION_COLUMNS):
            if unknown := int((~block["example_id"].isin(texts.index)).sum()):
                raise CotdError(
                    f"{unknown:,} annotations in {files.annotations} are of texts that are not among the study's examples. "
                    "Run `cotd annotate CONFIG` again; what is known is not asked again."
                )
            block = block.assign(
                text=block["example_id"].map(texts["text"]), gold_label=block["example_id"].map(texts["label"])
            )
            write_rows(block.assign(**{column: block[column].map(without_places) for column in PLACES})[list(COLUMNS)])


def dataset_card(summary: dict[str, Any], name: str) -> str:
    """The data set card, from the summary of the annotation run."""
    from huggingface_hub import DatasetCardData

    teacher, counts = summary["teacher"], summary["annotations"]
    front_matter = DatasetCardData(
        license="other", annotations_creators="machine-generated", tags=["cotd", "chain-of-thought", "distillation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": FILE}]}],
    ).to_yaml()  # fmt: skip
    measured = ""
    if teacher["accuracy"] is not None:
        interval = f"95 % interval [{teacher['ci_low']:.1%}, {teacher['ci_high']:.1%}]"
        measured = f" It labels {teacher['accuracy']:.1%} of {teacher['n']:,} test texts as the source does ({interval})."
    whose = ""
    if "student" in teacher:
        whose = f" The teacher is {cell(without_places(whose_student(teacher['student'])))}."
    figures = annotation_metrics(summary).items()
    shown = {k.replace("_", " "): f"{v:.4g}" for k, v in figures if k.startswith(("teacher_", "rationales_"))}
    return "\n".join([
        "---", front_matter, "---", "", f"# {name.partition('/')[2]}", "",
        f"Labels and rationales that a teacher, `{cell(without_places(teacher['model']))}`, gave to {counts['examples']:,} "
        f"training texts, by the strategy `{teacher['strategy']}`. Written by `cotd annotate` for the study "
        f"'{summary['study']}'.{whose}{measured}",
        "", "**The terms of the texts' source and of the teacher apply to this data set. Read both before you use or share it.**", "",
        "## Columns", "", "| column | |", "|---|---|", *(f"| `{column}` | {about} |" for column, about in COLUMNS.items()), "",
        "## Counts", "", f"{counts['rows']:,} rows, {counts['usable']:,} of them usable.", "",
        *reason_table(counts["quarantined"]),
        "## Quality", "", "| figure | |", "|---|---|", *(f"| {key} | {value} |" for key, value in shown.items()), "",
    ])  # fmt: skip


def reason_table(quarantined: dict[str, int]) -> list[str]:
    """Why rows are quarantined, and how many."""
    if not quarantined:
        return []
    rows = (f"| {cell(without_places(reason))} | {count:,} |" for reason, count in quarantined.items())
    return ["| why rows are quarantined | rows |", "|---|---|", *rows, ""]
