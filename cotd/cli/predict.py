"""`cotd predict`: predictions of texts from arguments, a stream or a file, by an endpoint or a student loaded here."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cotd.cli.app import app, stopped_with
from cotd.cli.arguments import CHAMPION, Below, Escalate, Json, TrackingUri, show
from cotd.cli.checks import Students, check_students, require_all
from cotd.errors import CotdError
from cotd.progress import say
from cotd.storage.tracking_store import default_tracking_uri
from cotd.utils.iteration import batched

if TYPE_CHECKING:
    from pipelines.predict.run import Predict, PredictionSummary

ENDPOINT = "http://127.0.0.1:8000"
OPTIONS_MISSING = "the task is multiple choice: each text comes with its options. Give them: --option ONE --option ANOTHER."

ColumnNames = tuple[str | None, str | None, str | None]  # --text, --input-template, --choices


@app.command()
def predict(
    context: typer.Context,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="texts; default: standard input, a line each")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="for multiple choice: one of the texts' options; give it for each of them")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"the endpoint to ask; default: {ENDPOINT}")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="load the student in this process instead of asking an endpoint")
    ] = False,
    student: Annotated[
        str | None,
        typer.Option(help=f"for --local and --input: models:/NAME@ALIAS, a folder, or a hub id; default: {CHAMPION}"),
    ] = None,
    escalate: Escalate = None,
    below: Below = None,
    rationale: Annotated[bool, typer.Option("--rationale", help="also print the student's own explanation")] = False,
    as_json: Json = False,
    input: Annotated[
        str | None,
        typer.Option(
            help="a .parquet, .jsonl, .json, .csv or .tsv file, a folder, pattern or URL of such, to predict with Ray "
            "Data or, with --url, by that endpoint"
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the file for --input's rows with their predictions")] = None,
    text: Annotated[
        str | None, typer.Option(help="--input's text column; default: as in the student's study, else text")
    ] = None,
    input_template: Annotated[
        str | None, typer.Option(help='in place of --text, a template over columns: "{title}: {body}"; default: as --text')
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="for multiple choice: --input's column of options; default: as --text, else choices")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Predicts texts: with a student of sentiment, whether they are positive or negative.

    Example: cotd predict "A warm and funny film."

    Example: cotd predict --local --rationale < texts.txt

    Example: cotd predict --local --escalate models:/cotd-student@large --below share=0.2 "A warm and funny film."

    Example: cotd predict "Where is milk kept?" --option "a fridge" --option "a drawer"

    Example: cotd predict --input reviews.parquet --output predicted.parquet

    Example: cotd predict --input pairs.csv --output predicted.csv --input-template "premise: {premise} hypothesis: {hypothesis}"

    Example: cotd predict --input reviews.parquet --output predicted.parquet --url http://127.0.0.1:8000
    """
    loads_student = local or bool(input and not url)
    problems = {
        "--input and --output go together, without texts as arguments": bool(input) != bool(output) or bool(input and texts),
        "--json is for predictions that are printed: leave it out, the name of --output decides the format": input and as_json,
        "--input loads the student without --local: leave one of them out": input and local,
        "--option is for texts that are given as arguments; --choices names the column of options of --input": input and option,
        "--text, --input-template and --choices name columns of --input: name a file": (text or input_template or choices)
            and not input,
        "--local uses no endpoint: leave out --url, or --local": url and local,
        "--student and --tracking-uri are for --local and --input: an endpoint predicts with the student that it serves":
            (student or tracking_uri) and not loads_student,
        "--escalate is for --local and --input: an endpoint hands texts on if it was started so": escalate and not loads_student,
        "--below says what is handed on: name the larger student, --escalate": below and not escalate,
    }  # fmt: skip
    if wrong := [message for message, applies in problems.items() if applies]:
        raise CotdError(*(f"{message}." for message in wrong))
    store = tracking_uri or default_tracking_uri()
    students = (student or CHAMPION, escalate, below or "auto")
    if input and output:
        named = (text, input_template, choices)
        with stopped_with(f"{output} was not written: its rows are put in place when all are predicted"):
            if url:
                summary = predict_file_by_endpoint(input, output, named, rationale, url)
            else:
                summary = predict_file_by_student(input, output, named, rationale, students, store)
        for sentence in summary.sentences:
            say(sentence)
        if not summary.rows:
            say("error: no row could be predicted.")
            raise typer.Exit(1)
        return
    examples = iter(texts) if texts else (line.strip() for line in sys.stdin if line.strip())
    with contextlib.ExitStack() as stack:
        predict_rows = local_student(students, rationale, store) if local else endpoint_at(url or ENDPOINT, rationale, stack)
        rows = predicted(examples, option, predict_rows, 4 if rationale else 32)
        if (first := next(rows, None)) is None:
            raise CotdError("no example given: name some as arguments, or give them on standard input, a line each.")
        rows = itertools.chain([first], rows)
        show(context, as_json, list(rows) if as_json else [], map(prediction_line, rows))


def predicted(examples: Iterator[str], options: list[str] | None, predict_rows: Predict, size: int) -> Iterator[dict[str, Any]]:
    """Texts with their predictions, as soon as each batch of `size` texts has them."""
    count = 0
    for batch in batched(examples, size):
        for example, row in zip(batch, predict_rows(batch, [options] * len(batch) if options else None), strict=True):
            yield {"text": example, **row}
            count += 1
            if count % 1000 == 0 and not sys.stdout.isatty():
                say(f"  {count:,} texts")


def prediction_line(row: dict[str, Any]) -> str:
    explanation = f"\n          {row['rationale']}" if row.get("rationale") else ""
    label = "(none)" if row["label"] is None else row["label"]
    score = "" if row["score"] is None else f" {row['score']:6.1%}"
    larger = "  [escalated]" if row.get("answered_by") == "escalated" else ""
    unread = "  [has characters that the student cannot read]" if row.get("unread") else ""
    return f"{label:8}{score}  {row['text']}{larger}{unread}{explanation}"


def local_student(students: Students, rationale: bool, store: str) -> Predict:
    """The student, or the two of a cascade, loaded into this process."""
    from cotd.students.vocabulary import unread_warning
    from pipelines.predict.cascade import Cascade

    check_students(students, store)
    cascade = Cascade.load(*students)
    model = cascade.student
    if rationale and not cascade.can_explain:
        raise CotdError(f"this student was trained by '{model.card.get('method')}' and has learned no rationales.")

    def predict_rows(examples: list[str], choices: list[list[str]] | None) -> list[dict[str, Any]]:
        if choices and not model.task.needs_choices:
            raise CotdError(f"the task '{model.task.name}' is {model.task.kind}: leave out --option.")
        if model.task.needs_choices and not choices:
            raise CotdError(OPTIONS_MISSING)
        rows = cascade.predict(examples, choices, rationale)
        if warning := unread_warning(model.tokenizer, model.rendered(examples, choices)):
            say(f"warning: {warning}")
        return [
            {key: value for key, value in row.items() if key != "unread"} | {"rationale": row.get("rationale")} for row in rows
        ]

    return predict_rows


def endpoint_at(url: str, rationale: bool, stack: contextlib.ExitStack) -> Predict:
    """The endpoint at an address, for as long as the stack is open."""
    from serve.client import Client, Rejected

    client = stack.enter_context(Client(url))

    def predict_rows(examples: list[str], choices: list[list[str]] | None) -> list[dict[str, Any]]:
        try:
            rows = client.predict(examples, choices, rationale)
            return [{"rationale": None} | row.model_dump(exclude_unset=True) for row in rows]
        except Rejected as error:
            if error.code != "choices_missing":
                raise
            raise CotdError(OPTIONS_MISSING) from error

    return predict_rows


def predict_file_by_student(
    source: str, target: str, named: ColumnNames, rationale: bool, students: Students, store: str
) -> PredictionSummary:
    """Predicts a file with Ray Data."""
    from cotd.data.files import find_files
    from pipelines.cluster.session import ray_session
    from pipelines.predict import run

    student, escalate, below = students
    require_all(lambda: find_files(source), lambda: run.require_output(target), lambda: check_students(students, store))
    columns, _ = run.columns_of(student, *named)
    run.require_columns(table := run.scan(source), columns)
    with ray_session():
        return run.predict_file(table, target, student, store, columns, rationale, escalate, below)


def predict_file_by_endpoint(source: str, target: str, named: ColumnNames, rationale: bool, url: str) -> PredictionSummary:
    """Predicts a file by an endpoint."""
    from cotd.data.files import find_files
    from cotd.data.inputs import InputColumns
    from cotd.tasks.registry import parse_task
    from pipelines.predict import run
    from serve.client import Client, NotFound

    require_all(lambda: find_files(source), lambda: run.require_output(target))
    with contextlib.ExitStack() as stack:
        card: dict[str, Any] = {}
        optional = ["rationale"] * rationale
        with Client(url) as client, contextlib.suppress(NotFound):
            model = client.model()
            card, optional = model.card, [*["answered_by"] * (model.escalation is not None), *optional]
        task = parse_task(card.get("task", {"name": "unknown", "kind": "multiple_choice" if named[2] else "numeric"}))
        columns = InputColumns.make(card, task, *named)
        predict_rows = refusals_as_rows(endpoint_at(url, rationale, stack))
        return run.predict_file_with(predict_rows, source, target, columns, task.labels, optional)


def refusals_as_rows(predict_rows: Predict) -> Predict:
    """An endpoint's predictions, with its refusals and failures as errors of single rows."""
    from pipelines.predict.run import RowRefused
    from serve.client import Failed, Rejected

    def predict(texts: list[str], choices: list[list[str]] | None) -> Sequence[dict[str, Any]]:
        try:
            return predict_rows(texts, choices)
        except Rejected as error:
            if error.code == "no_rationales":
                raise
            raise RowRefused(str(error)) from error
        except Failed as error:
            raise RuntimeError(str(error)) from error

    return predict
