"""Arguments that several commands take, and what they print."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from cotd.cli.app import STUDY, name_study

CHAMPION = "models:/cotd-student@champion"


def note_config(context: typer.Context, config: str) -> str:
    """Remembers the study's file, for messages that tell what to run; see `Program`."""
    context.meta[STUDY] = [config]
    return config


def note_overrides(context: typer.Context, overrides: list[str] | None) -> list[str] | None:
    """Remembers the overrides, which the next command needs, too."""
    context.meta.get(STUDY, []).extend(overrides or [])
    return overrides


Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="a study's YAML, for example tune_configs/demo.yaml", callback=note_config)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="overrides, like training.steps=100 or variant=embedded", callback=note_overrides),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store to look the model up in; default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
]

Escalate = Annotated[
    str | None, typer.Option(help="a larger student, named like --student, which answers what the student is not sure of")
]
Below = Annotated[
    str | None,
    typer.Option(
        help="what is handed on to the larger student: answers below a confidence (0.8), share=0.2: the least sure fifth, "
        "accuracy=0.85: those below the confidence from which the others are so accurate, within=0.02: as few as the two need to come "
        "within so much of the larger one's accuracy, auto: within=0.01, but 40 % at most; default: auto"
    ),
]

TextColumn = Annotated[
    str | None, typer.Option("--text", help="the text column; default: as in the student's study, else text")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label", help="the label column; default: as in the student's study, else label")
]
InputTemplate = Annotated[
    str | None, typer.Option(help='in place of --text, a template over columns: "{title}: {body}"; default: as --text')
]
ChoicesColumn = Annotated[
    str | None, typer.Option("--choices", help="for multiple choice: the column of options; default: as --text, else choices")
]


def redirect_output(context: typer.Context, as_json: bool) -> bool:
    """With --json: until the command ends, standard output is for its document alone, whatever a library prints."""
    context.meta["output"] = sys.stdout
    if as_json:
        context.with_resource(contextlib.redirect_stdout(sys.stderr))
    return as_json


Json = Annotated[
    bool, typer.Option("--json", callback=redirect_output, help="print one JSON document on standard output, and nothing else")
]


def show(context: typer.Context, as_json: bool, document: Any, lines: Iterable[str]) -> None:
    """Prints a command's result: its document with --json, else its lines."""
    if as_json:
        plain = json.loads(json.dumps(document, default=str), parse_constant=lambda name: None)  # JSON has no NaN
        print(json.dumps(plain, indent=2, ensure_ascii=False), file=context.meta["output"])
        return
    for line in lines:
        print(name_study(context, line), flush=True)
