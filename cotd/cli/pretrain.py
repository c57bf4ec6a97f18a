"""`cotd pretrain`: a small T5 from text."""

from __future__ import annotations

from typing import Annotated

import typer

from cotd.cli.app import app
from cotd.cli.arguments import Overrides


@app.command()
def pretrain(
    config: Annotated[str, typer.Argument(help="a recipe's YAML, for example tune_configs/pretrain/t5_tiny.yaml")],
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option(help="start over where the folder holds a run of another recipe")] = False,
) -> None:
    """Makes a small T5 from text: tokenizer, embeddings, distilled and denoised; goes on where it was stopped.

    Example: cotd pretrain tune_configs/pretrain/t5_tiny.yaml training.steps=1000 corpus.limit=2000
    """
    from cotd.pretraining.config import load_pretrain_config
    from pipelines.pretrain import pretrain as run

    recipe = load_pretrain_config(config, overrides)
    summary = run(recipe, restart)
    for name, value in summary["last"].items():
        if name.startswith(("held_out", "probe")):
            print(f"{name.replace('_', ' ')}: {value:.3f}")
    print(f"{summary['parameters']:,} parameters: {recipe.directory / 'model'}")
