"""`cotd predict`: reviews from the command line, a stream or a file, to an endpoint or a student loaded here."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from cotd.cli.app import app
from cotd.cli.arguments import CHAMPION, TrackingUri
from cotd.cli.checks import check_student, refuse, require_all, tracking_store
from cotd.errors import CotdError

ENDPOINT = "http://127.0.0.1:8000"

Rows = Callable[[list[str]], list[dict[str, Any]]]


@app.command()
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(help="reviews; from standard input, a line each, if none is given")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"the endpoint to ask; by default {ENDPOINT}")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="load the student in this process instead of asking an endpoint")
    ] = False,
    student: Annotated[
        str | None, typer.Option(help=f"of --local and --input: models:/NAME@ALIAS, a folder, or a hub id; default: {CHAMPION}")
    ] = None,
    rationale: Annotated[bool, typer.Option("--rationale", help="also print the student's own explanation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    input: Annotated[
        str | None,
        typer.Option(help="a .parquet, .csv or .jsonl file to predict: with Ray Data, or with --url by that endpoint"),
    ] = None,
    output: Annotated[str | None, typer.Option(help="the file for --input's rows with their predictions")] = None,
    text: Annotated[str, typer.Option(help="--input's text column")] = "text",
    tracking_uri: TrackingUri = None,
) -> None:
    """Predicts the sentiment of reviews.

    Examples:
      cotd predict "A warm and funny film."
      cotd predict --local --rationale < reviews.txt
      cotd predict --input reviews.parquet --output scored.parquet
      cotd predict --input reviews.parquet --output scored.parquet --url http://127.0.0.1:8000
    """
    of_student = student is not None or tracking_uri is not None
    refuse(
        (bool(input) != bool(output) or bool(input and texts),
         "a file is predicted by --input and --output together, without reviews as arguments."),
        (bool(input and as_json), "--json is of reviews that are printed: the name of --output says what is written into it."),
        (bool(input and local), "--input loads the student without --local already: leave one of them out."),
        (bool(url and local), "--local asks no endpoint: leave out --url, or --local."),
        (of_student and not (local or (input and not url)),
         "--student and --tracking-uri name what --local or --input load: an endpoint answers with the student that it serves."),
    )  # fmt: skip
    model = student or CHAMPION
    if input and output:
        if url:
            predict_file_by_endpoint(input, output, text, url, rationale)
        else:
            predict_file(input, output, text, model, rationale, tracking_uri)
        return
    reviews = iter(texts) if texts else (line.strip() for line in sys.stdin if line.strip())
    with contextlib.ExitStack() as stack:
        answer = local_student(model, rationale, tracking_uri) if local else endpoint_at(url or ENDPOINT, rationale, stack)
        if not print_predictions(reviews, answer, as_json, 4 if rationale else 32):
            raise CotdError("no review given: name some as arguments, or give them on standard input, a line each.")


def print_predictions(reviews: Iterator[str], answer: Rows, as_json: bool, size: int) -> int:
    """Prints each review's prediction as soon as the few that it is asked with are answered; returns how many there were."""
    from cotd.progress import say
    from cotd.utils.iteration import batched

    count = 0
    for part in batched(reviews, size):
        for review, row in zip(part, answer(part), strict=True):
            if as_json:
                print(json.dumps({"text": review, **row}, ensure_ascii=False))
            else:
                explanation = f"\n          {row['rationale']}" if row.get("rationale") else ""
                print(f"{row['label']:8} {row['score']:6.1%}  {review}{explanation}")
        sys.stdout.flush()
        count += len(part)
        if not sys.stdout.isatty() and count // 1000 > (count - len(part)) // 1000:
            say(f"  {count:,} reviews")
    return count


def local_student(student: str, rationale: bool, tracking_uri: str | None) -> Rows:
    """The student, loaded into this process."""
    from dataclasses import asdict

    from cotd.students.student import Student as Model

    check_student(student, tracking_store(tracking_uri))
    model = Model.load(student)
    if rationale and not model.can_explain:
        raise CotdError(f"this student was trained by '{model.card.get('method')}' and has learned no rationales.")

    def answer(reviews: list[str]) -> list[dict[str, Any]]:
        rows = [asdict(p) for p in model.predict(reviews)]
        for row, why in zip(rows, model.explain(reviews) if rationale else [None] * len(rows), strict=True):
            row["rationale"] = why
        return rows

    return answer


def endpoint_at(url: str, rationale: bool, stack: contextlib.ExitStack) -> Rows:
    """The endpoint at an address, for as long as the stack is open."""
    from serve.client import Client

    client = stack.enter_context(Client(url))
    return lambda reviews: [p.model_dump() for p in client.predict(reviews, rationale)]


def predict_file(source: str, target: str, text: str, student: str, rationale: bool, tracking_uri: str | None) -> None:
    from cotd.progress import say
    from pipelines.cluster.session import ray_session
    from pipelines.predict import run

    uri = tracking_store(tracking_uri)
    require_all(
        lambda: run.require_columns(source, text),
        lambda: run.require_output(target),
        lambda: check_student(student, uri),
    )
    with ray_session():
        summary = run.predict_file(source, target, student, uri, text, rationale)
    for sentence in summary.sentences:
        say(sentence)


def predict_file_by_endpoint(source: str, target: str, text: str, url: str, rationale: bool) -> None:
    from cotd.progress import say
    from pipelines.predict import run
    from serve.client import Rejected

    require_all(lambda: run.require_columns(source, text), lambda: run.require_output(target))
    with contextlib.ExitStack() as stack:
        answer = endpoint_at(url, rationale, stack)

        def predict(texts: list[str]) -> list[dict[str, Any]]:
            try:
                return answer(texts)
            except Rejected as error:
                if error.code == "no_rationales":
                    raise
                raise run.RowRefused(str(error)) from error

        summary = run.predict_file_with(predict, source, target, text, rationale)
    for sentence in summary.sentences:
        say(sentence)
