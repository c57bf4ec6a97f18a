"""`cotd push`: a student or a study's annotations, with a card, to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cotd.cli.app import app
from cotd.cli.arguments import TrackingUri
from cotd.cli.checks import check_student, require_all
from cotd.errors import CotdError
from cotd.storage.tracking_store import default_tracking_uri


@app.command()
def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="a student (models:/NAME@ALIAS, a folder, or a hub id), or a study's YAML or folder"
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="the repository on the hub; made if it does not exist")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="of a study's YAML, like variant=embedded")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make the repository private")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write to runs/push/ORG/NAME what would be pushed")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Pushes a student, or a study's annotations, to the hub that HF_ENDPOINT names, with the token HF_TOKEN.

    Example: cotd push models:/cotd-student@champion my-org/my-student --private

    Example: cotd push runs/demo my-org/my-annotations --dry-run
    """
    from cotd.storage.hub import require_hub_name, require_token

    checks = [lambda: require_hub_name(name), *([] if dry_run else [lambda: require_token(name)])]
    if is_study(source):
        from pipelines.push.annotations import push_annotations

        require_all(*checks)
        print(push_annotations(study_folder(source, overrides or []), name, private, dry_run))
        return
    from pipelines.push.student import push_student, require_trained

    if overrides:
        raise CotdError(f"overrides are for a study's YAML, and '{source}' is not one: leave out {' '.join(overrides)}.")

    def check_source() -> None:
        check_student(source, tracking_uri or default_tracking_uri())
        require_trained(source)

    require_all(*checks, check_source)
    print(push_student(source, name, private, dry_run))


def is_study(source: str) -> bool:
    """Whether this is a study's YAML or folder."""
    folders = ("annotations", "data", "trials")
    return source.endswith((".yaml", ".yml")) or any((Path(source) / folder).is_dir() for folder in folders)


def study_folder(source: str, overrides: list[str]) -> Path:
    """The study's folder, with its examples prepared if `source` is its YAML."""
    if not source.endswith((".yaml", ".yml")):
        return Path(source)
    from cotd.study.config import load_config
    from pipelines.prepare import prepare

    config = load_config(source, overrides)
    prepare(config)
    return config.directory
