from __future__ import annotations

from pathlib import Path

import pytest

from cotd import assets
from cotd.errors import CotdError
from cotd.tasks.registry import SENTIMENT


def test_unknown_asset_names_the_nearest() -> None:
    with pytest.raises(CotdError, match=r"no embedded asset 'rotten-tomato'; there are: .*Did you mean 'rotten-tomatoes'\?"):
        assets.pull(["rotten-tomato"])


def test_an_asset_that_is_not_pulled_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_HOME", str(tmp_path))
    with pytest.raises(CotdError, match=f"is not in {tmp_path}. Run: cotd assets pull rotten-tomatoes"):
        assets.require("embedded:rotten-tomatoes")


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

    def breaks(package: Path | None, target: Path) -> None:
        (target / "half").touch()
        raise OSError("disk full")

    def works(package: Path | None, target: Path) -> None:
        (target / "whole").touch()

    def make(convert: object, version: int) -> assets.Asset:
        asset = assets.Asset("mine", "reviews", "Mine", "none", convert, version=version)  # type: ignore[arg-type]
        (tmp_path / "assets").mkdir(exist_ok=True)
        assets.make_asset(asset, tmp_path / "assets", lambda line: None)
        return asset

    with pytest.raises(OSError, match="disk full"):
        make(breaks, 1)
    assert list((tmp_path / "assets").iterdir()) == []
    made = make(works, 1)
    assert assets.is_ready(made)
    assert (assets.asset_directory("mine") / "whole").is_file()
    newer = assets.Asset("mine", "reviews", "Mine", "none", works, version=2)
    assert not assets.is_ready(newer), "a cache made by an older converter is made anew"


def test_the_embedded_student_tells_words_and_prefixes_apart(embedded_student: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    for word in SENTIMENT.verbalizers.values():
        ids = tokenizer(word)["input_ids"]
        assert len(ids) == 2, f"'{word}' is one piece and the end of the sequence"
        assert tokenizer.decode(ids, skip_special_tokens=True) == word
    assert tokenizer(SENTIMENT.label_prefix)["input_ids"] != tokenizer(SENTIMENT.rationale_prefix)["input_ids"]
    text = "The reviewer calls the film warm and funny; a 10/10."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
