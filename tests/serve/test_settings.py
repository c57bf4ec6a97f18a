"""The token, and contradictory settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cotd.errors import CotdError
from serve.settings import TOKEN_VARIABLE, Settings, token_digest, token_sha256
from tests.serve.conftest import TOKEN


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert token_digest() is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert token_digest() == token_sha256(TOKEN)
    (tmp_path / "token").write_text("another-token-in-a-file\n")
    assert token_digest(tmp_path / "token") == token_sha256("another-token-in-a-file")


@pytest.mark.parametrize("token", ["", "short", "two words of a token", "ünïcödé-tökén-öf-sömé-léngth"])
def test_a_token_that_guards_nothing_is_refused(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(CotdError, match="must be one word of at least 16 ASCII characters"):
        token_digest()


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CotdError, match="cannot read the token from the file"):
        token_digest(tmp_path / "nowhere")


def test_a_token_in_place_of_its_digest_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="token_sha256") as caught:
        Settings(token_sha256=TOKEN)
    assert TOKEN not in str(caught.value)


def test_credentials_in_an_address_are_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="the address holds credentials") as caught:
        Settings(tracking_uri="https://me:secret@mlflow.example")
    assert "secret" not in str(caught.value)


def test_a_queue_must_hold_a_request() -> None:
    with pytest.raises(ValidationError, match="would always be refused"):
        Settings(max_texts=10, max_queued_texts=5)
