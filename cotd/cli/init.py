"""`cotd init`: a study for a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cotd.cli.app import app
from cotd.errors import CotdError
from cotd.utils.files import write_text


@app.command("init")
def init(
    source: Annotated[str, typer.Argument(metavar="FILE", help="texts and labels: .csv, .tsv, .jsonl, .json or .parquet")],
    output: Annotated[Path | None, typer.Option(help="the study to write; default: FILE's name with .yaml, here")] = None,
    text: Annotated[list[str] | None, typer.Option(help="the text's column; repeat it for a text of several columns")] = None,
    label: Annotated[str | None, typer.Option(help="the column of labels, right options or numbers")] = None,
) -> None:
    """Writes a study for a file, by what its columns hold, and says what it saw. Nothing is overwritten.

    Few values that repeat are labels, many numbers free answers; a column of lists makes it multiple choice.

    Example: cotd init reviews.csv

    Example: cotd init pairs.parquet --text premise --text hypothesis --label relation --output pairs.yaml
    """
    from cotd.study.config import load_config
    from cotd.study.draft import draft_study

    target = output or Path(f"{Path(source).name.partition('.')[0] or 'mine'}.yaml")
    if target.exists():
        raise CotdError(f"{target} exists already: remove it, or name another file by --output.")
    draft = draft_study(source, text or (), label)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, draft.yaml)
    load_config(target)
    for sentence in draft.seen:
        print(sentence)
    print(f"written to {target}. Change what is wrong. A first student: cotd train {target} 'grid.method=[finetune]'")
    print(f"With the teacher: cotd annotate {target}; what comes then: cotd status {target}")
