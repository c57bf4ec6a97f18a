"""`cotd doctor`: the numbered preflight."""

from __future__ import annotations

import typer

from cotd.cli.app import app


@app.command()
def doctor() -> None:
    """Checks, one by one, what cotd needs: versions, processor, Ray, engine, assets, MLflow, disk."""
    from cotd.cli.environment_checks import run_checks

    if not run_checks():
        raise typer.Exit(1)
