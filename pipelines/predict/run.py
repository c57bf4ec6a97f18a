"""A file of texts to a file of predictions: by a student through Ray Data, or by any function, such as an endpoint."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute

from cotd.data.files import LINE, PROBLEM, to_pandas
from cotd.data.inputs import InputColumns
from cotd.errors import CotdError, nearest
from cotd.evaluation.cascade import ESCALATED
from cotd.progress import track
from cotd.storage.urls import is_remote
from cotd.students.base_models import find_student
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.utils.jsonl import parse_row
from cotd.utils.text import first_line, last_line
from pipelines.predict.files import BAD_LINE, FILE_TYPES, Table, read_tables, row_writer, scan

BATCH = 256
REASON = "quarantine_reason"
UNREAD = "cotd.unread"  # whether a row has characters that the student cannot read; counted, and not written
ADDED = {
    "predicted_label": pa.string(),
    "predicted_score": pa.float64(),
    "predicted_truncated": pa.bool_(),
    "predicted_answered_by": pa.string(),
    "predicted_rationale": pa.string(),
    REASON: pa.string(),
}
OPTIONAL = ("answered_by", "rationale")  # those of a cascade, and on request
# Texts, and the options of each if the task needs them → `label`, `score`, `truncated`, on request `rationale`, and `unread` if it
# is known, of each.
Predict = Callable[[list[str], list[list[str]] | None], Sequence[dict[str, Any]]]
SURELY = 8  # rows that all fail, from which on it is not their texts that are at fault
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
        escalated: how many of them the larger student of a cascade gave.
        reasons: why rows were quarantined → rows.
        unread: how many of the rows have characters that the student cannot read.
        output: the file that holds the rows with a prediction.
        quarantine: the file that holds the other rows, if there are any.
    """

    rows: int
    labels: dict[str, int]
    unanswered: int
    escalated: int
    reasons: dict[str, int]
    unread: int
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
        if self.escalated:
            share = self.escalated / self.rows
            sentences.append(f"{self.escalated:,} of them ({share:.1%}) were handed on to the larger student.")
        if self.unread:
            sentences.append(
                f"{self.unread:,} rows have characters that are not in the student's vocabulary: it cannot read them."
            )
        if self.quarantine:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
            sentences.append(f"{sum(self.reasons.values()):,} rows are quarantined in {self.quarantine}: {reasons}.")
        return sentences


def predict_file(
    source: str | Table,
    target: str,
    student: str,
    tracking_uri: str | None,
    columns: InputColumns | None = None,
    rationale: bool = False,
    escalate: str | None = None,
    below: str = "auto",
) -> PredictionSummary:
    """Predicts every row of a file on the running Ray, with a student in an actor for each GPU, or else each CPU.

    The output has the input's rows in their order with all their columns, and `predicted_label` (null if a free answer was not
    found), `predicted_score` (the label's probability, null for free answers), `predicted_truncated`, in a cascade
    `predicted_answered_by` ("student" or "escalated") and, on request, `predicted_rationale`. A row without a usable text or
    options is not in it, but in `NAME.quarantine.EXT` beside it, with a `quarantine_reason`. Both are put in place when all is done.

    Args:
        source: whatever `data.source` of a study takes but hub data sets, or what `scan` saw of it; on a cluster, where every node
            can read it. target: a `.parquet`, `.csv`, `.tsv` or `.jsonl` file.
        student: whatever `Student.load` takes; of `models:/NAME@ALIAS`, the version that it is at the start.
        columns: what is read of each row; None: what the student's card says.
        escalate: a larger student that answers what the student is not sure of. below: how sure it must be, see `choose_threshold`.

    Raises:
        CotdError: two students that cannot be a cascade, a file that cannot be read or written, no such column, or one that would
            be overwritten.
    """
    import ray

    student = pinned(student, tracking_uri)
    escalate = escalate and pinned(escalate, tracking_uri)
    named, task = columns_of(student)
    columns = columns or named
    table = source if isinstance(source, Table) else scan(source)
    require_columns(table, columns)
    require_output(target)
    options = ray.data.DataContext.get_current().execution_options
    preserve_order, options.preserve_order = options.preserve_order, True
    try:
        optional = ("answered_by",) * (escalate is not None) + ("rationale",) * rationale
        students = (student, escalate, below)
        tables = predicted_tables(table, students, tracking_uri, columns, optional)
        return write_predicted(table, target, tables, task.labels, optional)
    finally:
        options.preserve_order = preserve_order


def predict_file_with(
    predict: Predict,
    source: str | Table,
    target: str,
    columns: InputColumns,
    labels: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> PredictionSummary:
    """`predict_file` by a function, from this process and without Ray.

    Args:
        predict: raises RowRefused if one of the texts is at fault: then each is predicted by itself.
        labels: the task's, if they are fixed.
        optional: those of OPTIONAL that `predict` gives.

    Raises:
        CotdError: as `predict_file`, and whatever `predict` raises.
    """
    table = source if isinstance(source, Table) else scan(source)
    require_columns(table, columns)
    require_output(target)
    blocks = (block for file in table.files for block in read_tables(file, BATCH))
    tables = (with_predictions(block, columns, predict, optional) for block in blocks)
    return write_predicted(table, target, tables, labels, optional)


def added(optional: Sequence[str]) -> dict[str, pa.DataType]:
    """The columns of predictions, of the optional ones those named."""
    left_out = {f"predicted_{name}" for name in OPTIONAL if name not in optional}
    return {name: kind for name, kind in ADDED.items() if name not in left_out}


def write_predicted(
    source: Table, target: str, tables: Iterator[pa.Table], fixed: Sequence[str] = (), optional: Sequence[str] = ()
) -> PredictionSummary:
    """Writes rows with the columns of `ADDED` to the output and to the quarantine."""
    started = time.monotonic()
    rows = unanswered = escalated = unread = 0
    labels: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    output = Path(target)
    quarantine = output.with_name(f"{output.stem}.quarantine{output.suffix}")
    predicted = [pa.field(name, kind) for name, kind in added(optional).items() if name != REASON]
    bad_rows = [*[pa.field(BAD_LINE, pa.string())] * (source.damaged and BAD_LINE not in source.schema.names)]
    bad_rows += [pa.field(REASON, ADDED[REASON])]
    try:
        with (
            row_writer(output, pa.schema([*source.schema, *predicted])) as write,
            row_writer(quarantine, pa.schema([*source.schema, *bad_rows])) as write_quarantined,
            track("predicting", source.rows, "rows") as advance,
        ):
            for table in tables:
                unread += pa.compute.sum(table[UNREAD]).as_py() or 0
                table = table.drop_columns([UNREAD])
                bad = table[REASON].is_valid()
                good = table.filter(pa.compute.invert(bad)).drop_columns([REASON])
                write(good)
                write_quarantined(table.filter(bad).drop_columns([c for c in table.column_names if c in ADDED and c != REASON]))
                rows += len(good)
                unanswered += good["predicted_label"].null_count
                if "answered_by" in optional:
                    escalated += good["predicted_answered_by"].to_pylist().count(ESCALATED)
                labels.update(label for label in good["predicted_label"].to_pylist() if label in fixed)
                reasons.update(table[REASON].drop_null().to_pylist())
                advance(len(table))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise CotdError(f"cannot write '{target}': {error}. A .jsonl file takes columns of any kind.") from error
    if not reasons:
        quarantine.unlink()
    seconds = time.monotonic() - started
    quarantined = quarantine if reasons else None
    return PredictionSummary(rows, dict(labels), unanswered, escalated, dict(reasons), unread, output, quarantined, seconds)


def predicted_tables(
    source: Table,
    students: tuple[str, str | None, str],
    tracking_uri: str | None,
    columns: InputColumns,
    optional: Sequence[str],
) -> Iterator[pa.Table]:
    """The source's rows with the columns of `ADDED` and `UNREAD`, in order, as Ray Data delivers them."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    # At least four batches for each actor, which takes seconds to start.
    actors = min(gpus or max(1, int(resources.get("CPU", 1))), math.ceil(source.rows / (4 * BATCH)) or 1)
    predicted = read_dataset(source).map_batches(
        StudentActor,
        fn_constructor_args=(students, tracking_uri, columns, optional),
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
        raise CotdError(f"cannot predict '{source.source}': {last_line(cause or error)}") from error


def read_dataset(source: Table) -> Any:
    """The files as a Ray dataset, a task each."""
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Files(Datasource):
        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
            return [ReadTask(partial(read_tables, str(file), BATCH), unknown) for file in files]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    files = [file if is_remote(file) else Path(file).absolute() for file in source.files]
    return ray.data.read_datasource(Files())


class StudentActor:
    """A student, or the two of a cascade, in a process of its own. Args: students: those of `Cascade.load`."""

    def __init__(
        self, students: tuple[str, str | None, str], tracking_uri: str | None, columns: InputColumns, optional: Sequence[str]
    ):
        import torch

        from cotd.storage.tracking_store import use_tracking
        from pipelines.predict.cascade import Cascade

        torch.set_num_threads(1)  # every CPU has an actor
        use_tracking(tracking_uri)
        self.predict = partial(Cascade.load(*students).predict, rationale="rationale" in optional)
        self.columns, self.optional = columns, optional

    def __call__(self, table: pa.Table) -> pa.Table:
        return with_predictions(table, self.columns, self.predict, self.optional)


def with_predictions(table: pa.Table, columns: InputColumns, predict: Predict, optional: Sequence[str] = ()) -> pa.Table:
    """The table with the columns of `ADDED`; a row that has a `quarantine_reason` has nothing in the others.

    A batch that fails is predicted row by row, so that one bad row costs no other. A CotdError is no row's fault.

    Raises:
        CotdError: whatever row is tried, it fails: the student, its device or the endpoint is broken.
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
            except Exception as error:
                reasons[i] = f"prediction failed: {type(error).__name__}"
                if good.index(i) + 1 == SURELY and not any(rows):
                    raise CotdError(
                        f"none of {SURELY} rows could be predicted, each by itself ({type(error).__name__}: {first_line(error)}). Look "
                        "at the student, its device or the endpoint, and run the same command again."
                    ) from error
    for name, kind in added(optional).items():
        if name == REASON:
            table = table.append_column(name, pa.array(reasons, kind))
        else:
            table = table.append_column(name, pa.array([row.get(name.removeprefix("predicted_")) for row in rows], kind))
    return table.append_column(UNREAD, pa.array([row.get("unread", False) for row in rows], pa.bool_()))


def read_table(table: pa.Table, columns: InputColumns) -> tuple[list[Any], list[list[str]] | None, list[str | None]]:
    """Each row's text, its options if the task needs them, and why it cannot be used, or None."""
    names = [name for name, _ in columns.names]
    if LINE not in table.column_names:
        return columns.read(to_pandas(table.select([n for n in names if n in table.column_names])))
    if table.column_names == [PROBLEM, LINE]:
        rows = [parse_row(line) or {} for line in table[LINE].to_pylist()]
        frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
    else:
        frame = table.select([n for n in names if n in table.column_names]).to_pandas()
    texts, choices, problems = columns.read(frame)
    return texts, choices, [bad or problem for bad, problem in zip(table[PROBLEM].to_pylist(), problems, strict=True)]


def require_columns(source: Table, columns: InputColumns) -> None:
    """Raises a CotdError unless the source has the columns that are read, and none that would be added."""
    names = source.schema.names
    problems = [
        f"{source.source}: no column '{name}' ({option}); it has: {', '.join(names)}.{nearest(name, names)}"
        for name, option in columns.names
        if name not in names
    ]
    if existing := [name for name in ADDED if name in names]:
        problems.append(
            f"{source.source}: has the column '{existing[0]}' already, which would be overwritten. Rename or drop it."
        )
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
