"""A file of texts to a file of predictions, through Ray Data: for users who do not want an endpoint."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from cotd.errors import CotdError, nearest
from cotd.progress import track
from cotd.source_files import FILE_TYPES, NO_OBJECT, parse_line, text_problem

BATCH = 256
LONGEST_ROW = 16 * 2**20  # bytes of a CSV row or a line of JSON
# The column of JSON lines as they are: no schema would hold them all, and none may change what it does not understand.
LINE = "__line__"
REASON = "quarantine_reason"
ADDED = {
    "predicted_label": pa.string(),
    "predicted_score": pa.float64(),
    "predicted_truncated": pa.bool_(),
    "predicted_rationale": pa.string(),
    REASON: pa.string(),
}
Predict = Callable[[list[str]], Sequence[dict[str, Any]]]


class Writer(Protocol):
    """One file, written piece by piece."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ScoreSummary:
    """What became of a file's rows.

    Attributes:
        labels: predicted label → rows.
        reasons: why rows were quarantined → rows.
        quarantine: the file that holds those rows, if there are any.
    """

    labels: dict[str, int]
    reasons: dict[str, int]
    quarantine: Path | None
    seconds: float

    @property
    def sentences(self) -> list[str]:
        scored = sum(self.labels.values())
        shares = ", ".join(f"{count:,} {label}" for label, count in sorted(self.labels.items()))
        found = [f"{scored:,} rows in {self.seconds:.0f} s: {shares or 'none'}."]
        if self.quarantine:
            whys = "; ".join(f"{count:,} {why}" for why, count in sorted(self.reasons.items()))
            found.append(f"{sum(self.reasons.values()):,} rows are set aside in {self.quarantine}: {whys}.")
        return found


def score_file(
    source: str, target: str, student: str, tracking_uri: str | None, text: str = "text", rationale: bool = False
) -> ScoreSummary:
    """Predicts every row of a file on the running Ray, with a student in an actor for each GPU, or else each CPU.

    The output has the input's rows in their order with all their columns, and `predicted_label`, `predicted_score` (the
    label's probability), `predicted_truncated` and, if asked for, `predicted_rationale`. A row without a usable text is
    not in it, but in `NAME.quarantine.EXT` beside it, with a `quarantine_reason`. Both are put in place when all is done.

    Args:
        source, target: `.parquet`, `.csv` or `.jsonl` files; on a cluster, where every node can read them.
        student: whatever `Student.load` takes; of `models:/NAME@ALIAS`, the version that it is at the start.
        text: the column to predict.

    Raises:
        CotdError: a file that cannot be read or written, no such column, or one that would be overwritten.
    """
    import ray

    require_columns(source, text)
    require_output(target)
    started = time.monotonic()
    context = ray.data.DataContext.get_current()
    in_order = context.execution_options.preserve_order
    context.execution_options.preserve_order = True
    labels: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    aside = quarantine_path(Path(target))
    try:
        with FileWriter(Path(target)) as scored, FileWriter(aside) as quarantine:
            with track("predicting", count_rows(source), "rows") as advance:
                for table in scored_batches(source, pinned(student, tracking_uri), tracking_uri, text, rationale):
                    bad = table[REASON].is_valid()
                    good = table.filter(pa.compute.invert(bad)).drop_columns([REASON])
                    scored.write(good)
                    quarantine.write(
                        table.filter(bad).drop_columns([c for c in ADDED if c in table.column_names and c != REASON])
                    )
                    labels.update(good["predicted_label"].to_pylist())
                    reasons.update(table[REASON].drop_null().to_pylist())
                    advance(len(table))
            if not labels and not reasons:
                raise CotdError(f"'{source}' has no rows.")
            scored.finish()
            if reasons:
                quarantine.finish()
            else:
                aside.unlink(missing_ok=True)  # an earlier run's
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise CotdError(f"cannot write '{target}': {error}. A .jsonl file takes columns of any kind.") from error
    finally:
        context.execution_options.preserve_order = in_order
    return ScoreSummary(dict(labels), dict(reasons), aside if reasons else None, time.monotonic() - started)


def scored_batches(source: str, student: str, tracking_uri: str | None, text: str, rationale: bool) -> Iterator[pa.Table]:
    """The file's rows with the columns of `ADDED`, in order, as Ray Data delivers them."""
    import ray

    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    # No more than have four batches each to do: an actor takes seconds to start.
    actors = min(gpus or max(1, int(have.get("CPU", 1))), math.ceil(count_rows(source) / (4 * BATCH)))
    scored = read(source).map_batches(
        ScoreActor,
        fn_constructor_args=(student, tracking_uri, text, rationale),
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
        yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise CotdError(f"cannot predict '{source}': {str(cause or error).strip().splitlines()[-1]}") from error


def read(source: str) -> Any:
    """The file as a Ray dataset. CSV cells stay the strings that they are: 007 is not 7. JSON stays lines, in `LINE`."""
    import ray

    path = str(Path(source).expanduser().absolute())
    # No partitioning: else a folder called kind=radio would add a column.
    how: dict[str, Any] = {"partitioning": None, "file_extensions": None}
    if source.endswith(".parquet"):
        return ray.data.read_parquet(path, **how)
    # A row must fit into a block.
    blocks = {"block_size": LONGEST_ROW, "use_threads": False}
    if source.endswith(".jsonl"):
        # As a table of one column, whose delimiter no JSON may hold. `ray.data.read_text` breaks lines where JSON has
        # none, at U+2028 for one, and reads the file as a whole.
        return ray.data.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=[LINE], **blocks),
            parse_options=pa.csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types={LINE: pa.string()}),
            **how,
        )
    return ray.data.read_csv(
        path,
        read_options=pa.csv.ReadOptions(**blocks),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(column_names(source), pa.string())),
        **how,
    )


class ScoreActor:
    """A student in a process of its own."""

    def __init__(self, student: str, tracking_uri: str | None, text: str, rationale: bool):
        from dataclasses import asdict

        import torch

        from cotd.student import Student
        from cotd.tracking import use_tracking

        torch.set_num_threads(1)  # every CPU has an actor
        use_tracking(tracking_uri)
        model = Student.load(student)

        def predict(texts: list[str]) -> list[dict[str, Any]]:
            rows = [asdict(p) for p in model.predict(texts)]
            if rationale:
                for row, why in zip(rows, model.explain(texts), strict=True):
                    row["rationale"] = why
            return rows

        self.predict, self.text, self.rationale = predict, text, rationale

    def __call__(self, table: pa.Table) -> pa.Table:
        return with_predictions(table, self.text, self.predict, self.rationale)


def with_predictions(table: pa.Table, text: str, predict: Predict, rationale: bool) -> pa.Table:
    """The table with the columns of `ADDED`; a row that has a `quarantine_reason` has nothing in the others.

    A batch that fails is predicted row by row, so that one bad row costs no other.
    """
    if LINE in table.column_names:
        values, reasons = texts_of_lines(table[LINE].to_pylist(), text)
    else:
        values = table[text].to_pylist()
        reasons = [text_problem(value) for value in values]
    rows: list[dict[str, Any]] = [{} for _ in values]
    good = [i for i, reason in enumerate(reasons) if reason is None]
    try:
        for i, row in zip(good, predict([values[i] for i in good]) if good else [], strict=True):
            rows[i] = row
    except Exception:  # noqa: BLE001 - whatever a text can do to a tokenizer or a model
        for i in good:
            try:
                rows[i] = predict([values[i]])[0]
            except Exception as error:  # noqa: BLE001
                reasons[i] = f"prediction failed: {type(error).__name__}"
    for name, kind in ADDED.items():
        if name == REASON:
            table = table.append_column(name, pa.array(reasons, kind))
        elif rationale or name != "predicted_rationale":
            table = table.append_column(name, pa.array([row.get(name.removeprefix("predicted_")) for row in rows], kind))
    return table


def texts_of_lines(lines: list[str], text: str) -> tuple[list[Any], list[str | None]]:
    """The text of each line of JSON, and why there is none."""
    values: list[Any] = []
    reasons: list[str | None] = []
    for line in lines:
        row = parse_line(line)
        values.append(row.get(text) if row is not None else None)
        reasons.append(text_problem(values[-1]) if row is not None else NO_OBJECT)
    return values, reasons


class FileWriter:
    """A Parquet, CSV or JSON-lines file, written piece by piece to a temporary name; `finish` puts it in place."""

    def __init__(self, path: Path):
        self.path = path
        self.scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.writer: Writer | None = None
        self.schema: pa.Schema | None = None

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()
        self.scratch.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Appends rows; those that came as lines of JSON get back the columns they had."""
        if self.path.suffix == ".jsonl":
            self.writer = self.writer or LinesWriter(self.scratch)
        elif LINE in table.column_names:
            table = pa.Table.from_pylist([plain_row(row) for row in table.to_pylist()])
        if self.writer is None:
            if not len(table):
                return  # its columns may have no type yet
            self.schema = table.schema
            self.writer = self._open(table.schema)
        self.writer.write(table.cast(self.schema) if self.schema and len(table) else table)

    def _open(self, schema: pa.Schema) -> Writer:
        if self.path.suffix == ".parquet":
            return pa.parquet.ParquetWriter(self.scratch, schema)
        return pa.csv.CSVWriter(self.scratch, schema)

    def finish(self) -> None:
        """Puts the file in place."""
        if self.writer is None:  # not a row
            self.scratch.touch()
        else:
            self.writer.close()
        self.writer = None
        self.scratch.rename(self.path)


class LinesWriter:
    """JSON, a line a row."""

    def __init__(self, path: Path):
        self.file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self.file.write(json.dumps(plain_row(row), ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns of the JSON line it came from, if it came from one; a line that is no object stays a string."""
    if LINE not in row:
        return row
    line = row.pop(LINE)
    was = parse_line(line)
    return {**(was if was is not None else {"line": line}), **row}


def quarantine_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.quarantine{target.suffix}")


def require_columns(source: str, text: str) -> None:
    """Raises a CotdError unless the file is there, has the text column, and has none that would be added."""
    names = column_names(source)
    if text not in names:
        raise CotdError(f"{source}: no column '{text}' (--text); it has: {', '.join(names)}.{nearest(text, names)}")
    if taken := [name for name in ADDED if name in names]:
        raise CotdError(f"{source}: has the column '{taken[0]}' already, which would be overwritten. Rename or drop it.")


def require_output(target: str) -> None:
    """Raises a CotdError unless the file's type can be written and its folder is there."""
    path = Path(target)
    if path.suffix not in FILE_TYPES:
        raise CotdError(f"--output '{target}' is not a {', '.join(FILE_TYPES)} file.")
    if not path.absolute().parent.is_dir():
        raise CotdError(f"--output '{target}': there is no folder {path.absolute().parent}.")


def column_names(source: str) -> list[str]:
    """The file's columns: of JSON lines, those of the first.

    Raises:
        CotdError: it is not there, of another type, or cannot be read.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise CotdError(f"no file '{source}' (looked in {path.absolute().parent}).")
    try:
        if path.suffix == ".parquet":
            return list(pa.parquet.read_schema(path).names)
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file), [])
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                return list(json.loads(file.readline() or "{}"))
    except (OSError, ValueError, TypeError, csv.Error) as error:  # ArrowInvalid and JSON's errors are ValueErrors
        raise CotdError(f"cannot read '{source}': {error}") from error
    raise CotdError(f"'{source}' is not a {', '.join(FILE_TYPES)} file.")


def count_rows(source: str) -> int:
    """How many rows a file has, at least one; of text files, how many lines, which is as good for a progress bar."""
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        return max(1, int(pa.parquet.read_metadata(path).num_rows))
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return max(1, lines - (path.suffix == ".csv"))


def pinned(student: str, tracking_uri: str | None) -> str:
    """A source that stands for the same student in every process, whatever happens to an alias meanwhile."""
    from cotd.student import resolve_model
    from cotd.tracking import model_version, use_tracking

    use_tracking(tracking_uri)
    if student.startswith("models:/"):
        name, version = model_version(student)
        return f"models:/{name}/{version}"
    return resolve_model(student)
