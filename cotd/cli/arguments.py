"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

CHAMPION = "models:/cotd-student@champion"

Config = Annotated[str, typer.Argument(help="a study's YAML, for example tune_configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, like training.steps=100 or variant=embedded")
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store to look the model up in; default: MLFLOW_TRACKING_URI, else runs/mlflow.db")
]
