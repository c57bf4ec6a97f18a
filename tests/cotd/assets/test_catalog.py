"""The embedded assets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotd import assets
from cotd.errors import CotdError
from tests.tasks import SENTIMENT


def test_unknown_asset_names_the_nearest() -> None:
    with pytest.raises(CotdError, match=r"unknown embedded asset 'rotten-tomato'; known: .*Did you mean 'rotten-tomatoes'\?"):
        assets.pull(["rotten-tomato"])


def test_an_asset_that_is_not_pulled_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_HOME", str(tmp_path))
    with pytest.raises(CotdError, match=f"is not in {tmp_path}. Run: cotd assets pull rotten-tomatoes"):
        assets.require("embedded:rotten-tomatoes")


def test_the_embedded_student_distinguishes_words_and_prefixes(embedded_student: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    for word in SENTIMENT.verbalizers.values():
        ids = tokenizer(word)["input_ids"]
        assert len(ids) == 2, f"'{word}' is one piece and the end of the sequence"
        assert tokenizer.decode(ids, skip_special_tokens=True) == word
    assert tokenizer(SENTIMENT.label_prefix)["input_ids"] != tokenizer(SENTIMENT.rationale_prefix)["input_ids"]
    text = "The reviewer calls the film warm and funny; a 10/10."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
