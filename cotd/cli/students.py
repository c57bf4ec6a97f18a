"""`cotd evaluate`, `check` and `export`: what can be done with a trained student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cotd.cli.app import app
from cotd.cli.arguments import ChoicesColumn, InputTemplate, Json, LabelColumn, TextColumn, TrackingUri, show
from cotd.cli.checks import check_student, require_all
from cotd.progress import say
from cotd.storage.tracking_store import default_tracking_uri


@app.command()
def evaluate(
    context: typer.Context,
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="a folder, a hub id, or models:/NAME@ALIAS")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="embedded:NAME, a file, folder, pattern or URL, or a hub id")],
    split: Annotated[str, typer.Option(help="train, validation, test or all")] = "test",
    text: TextColumn = None,
    label: LabelColumn = None,
    input_template: InputTemplate = None,
    choices: ChoicesColumn = None,
    as_json: Json = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Scores a student against the gold labels of any source, without the examples that it has seen in training; prints JSON.

    Example: cotd evaluate models:/cotd-student@champion embedded:amazon-sentences
    """
    from cotd.evaluation.gold import NamedColumns, gold_examples, require_split
    from cotd.evaluation.metrics import predictions_table, score_predictions
    from cotd.evaluation.seen import unseen_by
    from cotd.students.base_models import find_student
    from cotd.students.student import Student as Model
    from cotd.students.vocabulary import unread_warning
    from cotd.tasks.registry import parse_task

    require_all(lambda: require_split(split), lambda: check_student(student, tracking_uri or default_tracking_uri()))
    folder, card = find_student(student)
    task = parse_task(card["task"])
    examples = gold_examples(source, task, split, NamedColumns(text, input_template, choices, label), card.get("data"))
    examples, seen = unseen_by(folder, examples, source)
    model = Model.load(folder)
    own_choices = examples["choices"].tolist() if "choices" in examples else None
    if warning := unread_warning(model.tokenizer, model.rendered(examples["text"].tolist(), own_choices)):
        say(f"warning: {warning}")
    scores = score_predictions(predictions_table(model, examples), task) | {"seen": seen}
    show(context, as_json, scores, [json.dumps(scores, indent=2)])


@app.command()
def check(
    context: typer.Context,
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="a folder, a hub id, or models:/NAME@ALIAS")],
    as_json: Json = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Behavioural tests of a student, such as names, typos and negation; prints pass rates, and never fails.

    Example: cotd check models:/cotd-student@champion
    """
    from dataclasses import asdict

    from cotd.evaluation.checklist import behaviour_table, check_behaviour, load_checklist
    from cotd.students.base_models import find_student
    from cotd.students.student import Student as Model
    from cotd.tasks.registry import parse_task

    check_student(student, tracking_uri or default_tracking_uri())
    load_checklist(parse_task(find_student(student)[1]["task"]))
    outcomes = check_behaviour(Model.load(student))
    show(context, as_json, [{**asdict(o), "pass_rate": o.pass_rate} for o in outcomes], behaviour_table(outcomes))


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="STUDENT", help="models:/NAME@ALIAS, a folder, or a hub id")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where to; must not exist yet, or be empty")],
    format: Annotated[str, typer.Option(help="hf, onnx (labels only) or ctranslate2")] = "hf",
    tracking_uri: TrackingUri = None,
) -> None:
    """Writes a student for use elsewhere, checked against the original, with a README.md that says how.

    Example: cotd export models:/cotd-student@champion exported --format onnx
    """
    from cotd.students.student import Student as Model
    from serve.runtimes.export import export_student, require_format, require_free

    require_all(
        lambda: require_format(format),
        lambda: require_free(folder),
        lambda: check_student(source, tracking_uri or default_tracking_uri()),
    )
    export_student(Model.load(source, device="cpu"), folder, format)
    print(f"{source} is in {folder}; its README.md says how to use it.")
