"""Embedded assets: models and reviews that ordinary Python packages carry, for work without any model hub."""

from cotd.assets.build import make_asset, pull
from cotd.assets.catalog import ASSETS, PREFIX, Asset, asset_directory, get_asset, is_embedded, is_ready, require

__all__ = [
    "ASSETS", "PREFIX", "Asset", "asset_directory", "get_asset", "is_embedded", "is_ready", "make_asset", "pull", "require",
]  # fmt: skip
