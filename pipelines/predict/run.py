"""A file of texts to a file of predictions: by a student through Ray Data, or by any function, such as an endpoint."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute

from cotd.data.files import NOT_AN_OBJECT
from cotd.data.inputs import InputColumns
from cotd.errors import CotdError, nearest
from cotd.progress import track
from cotd.students.base_models import find_student
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.utils.jsonl import parse_row
from cotd.utils.text import last_line
from pipelines.predict.files import FILE_TYPES, LINE, column_names, count_rows, csv_options, read_blocks, row_writer

BATCH = 256
REASON = "quarantine_reason"
ADDED = {
    "predicted_label": pa.string(),
    "predicted_score": pa.float64(),
    "predicted_truncated": pa.bool_(),
    "predicted_rationale": pa.string(),
    REASON: pa.string(),
}
# Texts, and the options of each if the task needs them → `label`, `score`, `truncated` and, on request, `rationale` of each.
Predict = Callable[[list[str], list[list[str]] | None], Sequence[dict[str, Any]]]
SHOWN = 12  # labels that are counted in the summary, the most frequent ones


class RowRefused(Exception):
    """Texts are not predicted, through no fault but their own: a row is quarantined with that reason."""


@dataclass(frozen=True)
class PredictionSummary:
    """What became of a file's rows.

    Attributes:
        rows: how many have a prediction.
        labels: predicted label → rows, if the task's labels are fixed.
        unanswered: how many of the rows have a prediction without an answer, which only free answers can lack.
        reasons: why rows were quarantined → rows.
        output: the file that holds the rows with a prediction.
        quarantine: the file that holds the other rows, if there are any.
    """

    rows: int
    labels: dict[str, int]
    unanswered: int
    reasons: dict[str, int]
    output: Path
    quarantine: Path | None
    seconds: float

    @property
    def sentences(self) -> list[str]:
        """The summary for the terminal."""
        labels = sorted(sorted(self.labels, key=lambda label: -self.labels[label])[:SHOWN])
        counts = [f"{self.labels[label]:,} {label}" for label in labels]
        counts += [f"{len(self.labels) - SHOWN} other labels"] * (len(self.labels) > SHOWN)
        counts += [f"{self.unanswered:,} without an answer"] * (self.unanswered > 0)
        by_label = f": {', '.join(counts)}" if counts else ""
        sentences = [f"{self.rows:,} rows predicted in {self.seconds:.0f} s{by_label}. They are in {self.output}."]
        if self.quarantine:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
            sentences.append(f"{sum(self.reasons.values()):,} rows are quarantined in {self.quarantine}: {reasons}.")
        return sentences


def predict_file(
    source: str,
    target: str,
    student: str,
    tracking_uri: str | None,
    columns: InputColumns | None = None,
    rationale: bool = False,
) -> PredictionSummary:
    """Predicts every row of a file on the running Ray, with a student in an actor for each GPU, or else each CPU.

    The output has the input's rows in their order with all their columns, and `predicted_label` (null if a free answer was not
    found), `predicted_score` (the label's probability, null for free answers), `predicted_truncated` and, on request,
    `predicted_rationale`. A row without a usable text or options is not in it, but in `NAME.quarantine.EXT` beside it, with a
    `quarantine_reason`. Both are put in place when all is done.

    Args:
        source, target: `.parquet`, `.csv` or `.jsonl` files; on a cluster, where every node can read them.
        student: whatever `Student.load` takes; of `models:/NAME@ALIAS`, the version that it is at the start.
        columns: what is read of each row; None: what the student's card says.

    Raises:
        CotdError: a file that cannot be read or written, no such column, or one that would be overwritten.
    """
    import ray

    student = pinned(student, tracking_uri)
    named, task = columns_of(student)
    columns = columns or named
    require_columns(source, columns)
    require_output(target)
    options = ray.data.DataContext.get_current().execution_options
    preserve_order, options.preserve_order = options.preserve_order, True
    try:
        tables = predicted_tables(source, student, tracking_uri, columns, rationale)
        return write_predicted(source, target, tables, task.labels)
    finally:
        options.preserve_order = preserve_order


def predict_file_with(
    predict: Predict, source: str, target: str, columns: InputColumns, labels: Sequence[str] = (), rationale: bool = False
) -> PredictionSummary:
    """`predict_file` by a function, from this process and without Ray.

    Args:
        predict: raises RowRefused if one of the texts is at fault: then each is predicted by itself.
        labels: the task's, if they are fixed.

    Raises:
        CotdError: as `predict_file`, and whatever `predict` raises.
    """
    require_columns(source, columns)
    require_output(target)
    tables = (with_predictions(table, columns, predict, rationale) for table in read_blocks(source, BATCH))
    return write_predicted(source, target, tables, labels)


def write_predicted(source: str, target: str, tables: Iterator[pa.Table], fixed: Sequence[str] = ()) -> PredictionSummary:
    """Writes rows with the columns of `ADDED` to the output and to the quarantine."""
    started = time.monotonic()
    rows = unanswered = 0
    labels: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    output = Path(target)
    quarantine = output.with_name(f"{output.stem}.quarantine{output.suffix}")
    try:
        with (
            row_writer(output) as write,
            row_writer(quarantine) as write_quarantined,
            track("predicting", count_rows(source), "rows") as advance,
        ):
            for table in tables:
                bad = table[REASON].is_valid()
                good = table.filter(pa.compute.invert(bad)).drop_columns([REASON])
                write(good)
                write_quarantined(table.filter(bad).drop_columns([c for c in table.column_names if c in ADDED and c != REASON]))
                rows += len(good)
                unanswered += good["predicted_label"].null_count
                labels.update(label for label in good["predicted_label"].to_pylist() if label in fixed)
                reasons.update(table[REASON].drop_null().to_pylist())
                advance(len(table))
            if not rows and not reasons:
                raise CotdError(f"'{source}' has no rows.")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise CotdError(f"cannot write '{target}': {error}. A .jsonl file takes columns of any kind.") from error
    if not reasons:
        quarantine.unlink()
    seconds = time.monotonic() - started
    return PredictionSummary(rows, dict(labels), unanswered, dict(reasons), output, quarantine if reasons else None, seconds)


def predicted_tables(
    source: str, student: str, tracking_uri: str | None, columns: InputColumns, rationale: bool
) -> Iterator[pa.Table]:
    """The file's rows with the columns of `ADDED`, in order, as Ray Data delivers them."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    # At least four batches for each actor, which takes seconds to start.
    actors = min(gpus or max(1, int(resources.get("CPU", 1))), math.ceil(count_rows(source) / (4 * BATCH)))
    predicted = read_dataset(source).map_batches(
        StudentActor,
        fn_constructor_args=(student, tracking_uri, columns, rationale),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        # The actors reserve no CPU; they are counted above, and Ray Data spreads them over nodes by itself. If each held
        # one, nothing would be left for the tasks that read the file, which need a whole one now and then, and both
        # would wait for ever.
        num_cpus=0,
        num_gpus=1 if gpus else 0,
    )
    try:
        yield from predicted.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise CotdError(f"cannot predict '{source}': {last_line(cause or error)}") from error


def read_dataset(source: str) -> Any:
    """The file as a Ray dataset."""
    import ray

    path = str(Path(source).expanduser().absolute())
    # No partitioning: else a folder called kind=radio would add a column.
    options: dict[str, Any] = {"partitioning": None, "file_extensions": None}
    if source.endswith(".parquet"):
        return ray.data.read_parquet(path, **options)
    return ray.data.read_csv(path, **csv_options(source), **options)


class StudentActor:
    """A student in a process of its own."""

    def __init__(self, student: str, tracking_uri: str | None, columns: InputColumns, rationale: bool):
        import torch

        from cotd.storage.tracking_store import use_tracking
        from cotd.students.student import Student

        torch.set_num_threads(1)  # every CPU has an actor
        use_tracking(tracking_uri)
        model = Student.load(student)

        def predict(texts: list[str], choices: list[list[str]] | None) -> list[dict[str, Any]]:
            rows = [asdict(p) for p in model.predict(texts, choices=choices)]
            if rationale:
                rows = [{**row, "rationale": r} for row, r in zip(rows, model.explain(texts, choices), strict=True)]
            return rows

        self.predict, self.columns, self.rationale = predict, columns, rationale

    def __call__(self, table: pa.Table) -> pa.Table:
        return with_predictions(table, self.columns, self.predict, self.rationale)


def with_predictions(table: pa.Table, columns: InputColumns, predict: Predict, rationale: bool) -> pa.Table:
    """The table with the columns of `ADDED`; a row that has a `quarantine_reason` has nothing in the others.

    A batch that fails is predicted row by row, so that one bad row costs no other. A CotdError is no row's fault.
    """
    texts, choices, reasons = read_table(table, columns)
    rows: list[dict[str, Any]] = [{} for _ in texts]

    def predict_rows(chosen: list[int]) -> Sequence[dict[str, Any]]:
        return predict([texts[i] for i in chosen], choices and [choices[i] for i in chosen]) if chosen else []

    good = [i for i, reason in enumerate(reasons) if reason is None]
    try:
        for i, row in zip(good, predict_rows(good), strict=True):
            rows[i] = row
    except CotdError:
        raise
    except Exception:  # noqa: BLE001 - whatever a text can do to a tokenizer or a model
        for i in good:
            try:
                rows[i] = predict_rows([i])[0]
            except CotdError:
                raise
            except RowRefused as error:
                reasons[i] = str(error)
            except Exception as error:  # noqa: BLE001
                reasons[i] = f"prediction failed: {type(error).__name__}"
    for name, kind in ADDED.items():
        if name == REASON:
            table = table.append_column(name, pa.array(reasons, kind))
        elif rationale or name != "predicted_rationale":
            table = table.append_column(name, pa.array([row.get(name.removeprefix("predicted_")) for row in rows], kind))
    return table


def read_table(table: pa.Table, columns: InputColumns) -> tuple[list[Any], list[list[str]] | None, list[str | None]]:
    """Each row's text, its options if the task needs them, and why it cannot be used, or None."""
    names = [name for name, _ in columns.names]
    if LINE not in table.column_names:
        return columns.read(table.select([n for n in names if n in table.column_names]).to_pandas(integer_object_nulls=True))
    rows = [parse_row(line) for line in table[LINE].to_pylist()]
    cells = {name: pd.Series([(row or {}).get(name) for row in rows], dtype=object) for name in names}
    texts, choices, problems = columns.read(pd.DataFrame(cells))
    return texts, choices, [NOT_AN_OBJECT if row is None else problem for row, problem in zip(rows, problems, strict=True)]


def require_columns(source: str, columns: InputColumns) -> None:
    """Raises a CotdError unless the file is there, has the columns that are read, and has none that would be added."""
    names = column_names(source)
    problems = [
        f"{source}: no column '{name}' ({option}); it has: {', '.join(names)}.{nearest(name, names)}"
        for name, option in columns.names
        if name not in names
    ]
    if existing := [name for name in ADDED if name in names]:
        problems.append(f"{source}: has the column '{existing[0]}' already, which would be overwritten. Rename or drop it.")
    if problems:
        raise CotdError(*problems)


def columns_of(
    student: str, text: str | None = None, template: str | None = None, choices: str | None = None
) -> tuple[InputColumns, Task]:
    """The columns that a student reads, as named here or else by its card, and its task.

    Raises:
        CotdError: as `find_student` and `InputColumns.make`.
    """
    _, card = find_student(student)
    task = parse_task(card["task"])
    return InputColumns.make(card, task, text, template, choices), task


def require_output(target: str) -> None:
    """Raises a CotdError unless the file's type can be written and its folder is there."""
    path = Path(target)
    if path.suffix not in FILE_TYPES:
        raise CotdError(f"--output '{target}' is not a {', '.join(FILE_TYPES)} file.")
    if not path.absolute().parent.is_dir():
        raise CotdError(f"--output '{target}': there is no folder {path.absolute().parent}.")


def pinned(student: str, tracking_uri: str | None) -> str:
    """A source that is the same student in every process, whatever happens to an alias meanwhile."""
    from cotd.storage.model_cache import model_version
    from cotd.storage.tracking_store import use_tracking
    from cotd.students.base_models import resolve_model

    use_tracking(tracking_uri)
    if student.startswith("models:/"):
        name, version = model_version(student)
        return f"models:/{name}/{version}"
    return resolve_model(student)
