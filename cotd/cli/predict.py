"""`cotd predict`: predictions of examples from arguments, a stream or a file, by an endpoint or a student loaded here."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cotd.cli.app import app
from cotd.cli.arguments import CHAMPION, Json, TrackingUri, show
from cotd.cli.checks import check_student, require_all
from cotd.errors import CotdError
from cotd.storage.tracking_store import default_tracking_uri
from cotd.utils.iteration import batched

ENDPOINT = "http://127.0.0.1:8000"

# Texts → `label`, `score`, `truncated` and, on request, `rationale` of each.
PredictRows = Callable[[list[str]], list[dict[str, Any]]]


@app.command()
def predict(
    context: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="examples; default: standard input, a line each")] = None,
    url: Annotated[str | None, typer.Option(help=f"the endpoint to ask; default: {ENDPOINT}")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="load the student in this process instead of asking an endpoint")
    ] = False,
    student: Annotated[
        str | None,
        typer.Option(help=f"for --local and --input: models:/NAME@ALIAS, a folder, or a hub id; default: {CHAMPION}"),
    ] = None,
    rationale: Annotated[bool, typer.Option("--rationale", help="also print the student's own explanation")] = False,
    as_json: Json = False,
    input: Annotated[
        str | None,
        typer.Option(help="a .parquet, .csv or .jsonl file to predict: with Ray Data, or with --url by that endpoint"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the file for --input's rows with their predictions")] = None,
    text: Annotated[str, typer.Option(help="--input's text column")] = "text",
    tracking_uri: TrackingUri = None,
) -> None:
    """Predicts the sentiment of examples.

    Example: cotd predict "A warm and funny film."

    Example: cotd predict --local --rationale < examples.txt

    Example: cotd predict --input reviews.parquet --output scored.parquet

    Example: cotd predict --input reviews.parquet --output scored.parquet --url http://127.0.0.1:8000
    """
    loads_student = local or bool(input and not url)
    problems = {
        "--input and --output go together, without examples as arguments": bool(input) != bool(output) or bool(input and texts),
        "--json is for predictions that are printed: leave it out, the name of --output decides the format": input and as_json,
        "--input loads the student without --local: leave one of them out": input and local,
        "--local uses no endpoint: leave out --url, or --local": url and local,
        "--student and --tracking-uri are for --local and --input: an endpoint predicts with the student that it serves":
            (student or tracking_uri) and not loads_student,
    }  # fmt: skip
    if wrong := [message for message, applies in problems.items() if applies]:
        raise CotdError(*(f"{message}." for message in wrong))
    model, store = student or CHAMPION, tracking_uri or default_tracking_uri()
    if input and output:
        predict_file(input, output, text, rationale, url, model, store)
        return
    examples = iter(texts) if texts else (line.strip() for line in sys.stdin if line.strip())
    with contextlib.ExitStack() as stack:
        predict_rows = local_student(model, rationale, store) if local else endpoint_at(url or ENDPOINT, rationale, stack)
        rows = predicted(examples, predict_rows, 4 if rationale else 32)
        if (first := next(rows, None)) is None:
            raise CotdError("no example given: name some as arguments, or give them on standard input, a line each.")
        rows = itertools.chain([first], rows)
        show(context, as_json, list(rows) if as_json else [], map(prediction_line, rows))


def predicted(examples: Iterator[str], predict_rows: PredictRows, size: int) -> Iterator[dict[str, Any]]:
    """Examples with their predictions, as soon as each batch of `size` examples has them."""
    from cotd.progress import say

    count = 0
    for batch in batched(examples, size):
        for example, row in zip(batch, predict_rows(batch), strict=True):
            yield {"text": example, **row}
            count += 1
            if count % 1000 == 0 and not sys.stdout.isatty():
                say(f"  {count:,} examples")


def prediction_line(row: dict[str, Any]) -> str:
    explanation = f"\n          {row['rationale']}" if row.get("rationale") else ""
    return f"{row['label']:8} {row['score']:6.1%}  {row['text']}{explanation}"


def local_student(student: str, rationale: bool, store: str) -> PredictRows:
    """The student, loaded into this process."""
    from cotd.students.student import Student

    check_student(student, store)
    model = Student.load(student)
    if rationale and not model.can_explain:
        raise CotdError(f"this student was trained by '{model.card.get('method')}' and has learned no rationales.")

    def predict_rows(examples: list[str]) -> list[dict[str, Any]]:
        rationales = model.explain(examples) if rationale else [None] * len(examples)
        predictions = model.predict(examples)
        return [{**asdict(p), "rationale": why} for p, why in zip(predictions, rationales, strict=True)]

    return predict_rows


def endpoint_at(url: str, rationale: bool, stack: contextlib.ExitStack) -> PredictRows:
    """The endpoint at an address, for as long as the stack is open."""
    from serve.client import Client

    client = stack.enter_context(Client(url))
    return lambda examples: [p.model_dump() for p in client.predict(examples, rationale)]


def predict_file(source: str, target: str, text: str, rationale: bool, url: str | None, student: str, store: str) -> None:
    """Predicts a file, by an endpoint if there is a URL, else with Ray Data."""
    from cotd.progress import say
    from pipelines.cluster.session import ray_session
    from pipelines.predict import run

    checks = [lambda: run.require_columns(source, text), lambda: run.require_output(target)]
    with contextlib.ExitStack() as stack:
        if url:
            require_all(*checks)
            predict_rows = refusals_as_rows(endpoint_at(url, rationale, stack))
            summary = run.predict_file_with(predict_rows, source, target, text, rationale)
        else:
            require_all(*checks, lambda: check_student(student, store))
            stack.enter_context(ray_session())
            summary = run.predict_file(source, target, student, store, text, rationale)
    for sentence in summary.sentences:
        say(sentence)


def refusals_as_rows(predict_rows: PredictRows) -> PredictRows:
    """An endpoint's predictions, with its refusals as errors of single rows."""
    from pipelines.predict.run import RowRefused
    from serve.client import Rejected

    def predict(texts: list[str]) -> list[dict[str, Any]]:
        try:
            return predict_rows(texts)
        except Rejected as error:
            if error.code == "no_rationales":
                raise
            raise RowRefused(str(error)) from error

    return predict
