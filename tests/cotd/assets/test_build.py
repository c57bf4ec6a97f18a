"""Assets are made whole or not at all, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd import assets
from cotd.assets import build
from cotd.assets.catalog import Package
from cotd.errors import CotdError


def test_a_cache_folder_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COTD_HOME", str(tmp_path / "file"))
    with pytest.raises(CotdError, match="Point COTD_HOME elsewhere"):
        assets.pull(["rotten-tomatoes"])


def test_what_is_in_place_is_left_alone(rotten_tomatoes: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in rotten_tomatoes.iterdir()}
    lines: list[str] = []
    assert assets.pull(["rotten-tomatoes"], report=lines.append) == [rotten_tomatoes]
    assert {p: p.stat().st_mtime_ns for p in rotten_tomatoes.iterdir()} == before
    assert lines == [f"[1/1] rotten-tomatoes: in place ({rotten_tomatoes})"]


def test_an_asset_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_HOME", str(tmp_path))
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(build, "fetch", lambda package, directory: directory)

    def breaks(package: Path, target: Path) -> None:
        (target / "half").touch()
        raise OSError("disk full")

    def works(package: Path, target: Path) -> None:
        (target / "whole").touch()

    def asset(convert: Callable[[Path, Path], None], version: int = 1) -> assets.Asset:
        return assets.Asset("mine", "reviews", "Mine", "none", convert, Package("mine", "1", "", 0), version)

    with pytest.raises(OSError, match="disk full"):
        assets.make_asset(asset(breaks))
    assert list((tmp_path / "assets").iterdir()) == []
    assets.make_asset(asset(works))
    assert assets.is_ready(asset(works))
    assert (assets.asset_directory("mine") / "whole").is_file()
    newer = asset(works, version=2)
    assert not assets.is_ready(newer), "a cache made by an older converter is made anew"
