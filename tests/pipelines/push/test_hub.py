"""Pushes to the stand-in hub and back, by the command, in a child process: see `tests.hub.child`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.hub.child import VIEWER, cotd, run_check
from tests.hub.server import Hub, Repo
from tests.hub.uploads import TOKEN

pytestmark = pytest.mark.integration
PUSHED, LABELLED, PUBLIC, SHARDED = "stand-in/pushed", "stand-in/annotations", "stand-in/public", "stand-in/sharded"
TEXTS = ["A warm and funny film.", "A dull and lifeless film, number 7."]


def with_token(token: str | None) -> None:
    """Before the hub's library is imported: the stand-in takes large files as Git LFS does, not by Xet."""
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token


def push_both() -> dict[str, Any]:
    with_token(TOKEN)
    import datasets

    from cotd.students.student import Student

    answer: dict[str, Any] = {
        "student": [cotd("push", "student", PUSHED, "--private") for _ in range(2)],
        "annotations": [cotd("push", "runs/small", LABELLED) for _ in range(2)],
        "sharded": cotd("push", "student", SHARDED),
        "again_private": cotd("push", "runs/small", LABELLED, "--private"),
    }
    answer["local"], answer["loaded"] = ([p.label for p in Student.load(s, "cpu").predict(TEXTS)] for s in ("student", PUSHED))
    answer["scores"] = [[p.score for p in Student.load(s, "cpu").predict(TEXTS)] for s in ("student", PUSHED)]
    answer["rows"] = datasets.load_dataset(LABELLED)["train"].to_list()
    refusals = {"bad token": "hf_wrong", "none": None}
    for name, token in refusals.items():
        with_token(token)
        answer[name] = cotd("push", "runs/small", PUBLIC)
    with_token(TOKEN)
    answer["other org"] = cotd("push", "runs/small", "somebody/else")
    with_token(None)
    answer["all problems"] = cotd("push", "embedded:t5-mini", "no-org")
    answer["dry run"] = cotd("push", "student", PUBLIC, "--dry-run")
    answer["overrides"] = cotd("push", "student", PUBLIC, "a.b=1", "--dry-run")
    return answer


def find_no_hub() -> dict[str, Any]:
    """The pauses between the library's retries are counted and not waited for."""
    with_token(TOKEN)
    pauses: list[float] = []
    time.sleep, started = pauses.append, time.monotonic()
    refused = cotd("push", "runs/small", PUBLIC)
    return {**refused, "seconds": time.monotonic() - started + sum(pauses)}


def test_what_is_pushed_comes_back(hub: Hub, copied: Path, embedded_student: Path) -> None:
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "NOTES.md": b"mine"}
    hub.repos["models", SHARDED] = Repo("models", SHARDED, old)
    answer = run_check(push_both, hub, copied)
    for kind in ("student", "annotations"):
        assert [run["code"] for run in answer[kind]] == [0, 0], answer[kind][0]["err"]
        assert [run["out"].split(" ")[0] for run in answer[kind]] == ["pushed", "nothing"]
        assert "MB, to stand-in/" in answer[kind][0]["err"]
    assert [repo for repo in hub.commits if repo in (PUSHED, LABELLED)] == [PUSHED, LABELLED], "no commit without a change"
    assert answer["loaded"] == answer["local"]
    assert answer["scores"][0] == pytest.approx(answer["scores"][1], abs=1e-6)
    pushed, sharded = hub.repos["models", PUSHED].files, hub.repos["models", SHARDED].files
    kept = {".gitattributes": b"", "README.md": b""}
    assert {**sharded, **kept} == {**pushed, **kept, "NOTES.md": b"mine"}, answer["sharded"]["err"]
    assert hub.repos["models", PUSHED].private
    assert not hub.repos["datasets", LABELLED].private
    stored = pd.read_parquet(pd.io.common.BytesIO(hub.repos["datasets", LABELLED].files["annotations.parquet"]))
    assert [row["text"] for row in answer["rows"]] == list(stored["text"])
    assert len(answer["rows"]) == 48
    assert set(answer["strangers"]) <= {VIEWER}
    for name, words in {
        "again_private": [f"'{LABELLED}' exists and is public."],
        "bad token": [f"cannot push to '{PUBLIC}': the hub refuses the token (", "Set HF_TOKEN to one that may write there."],
        "other org": ["the hub refuses the token (You don't have the rights to write to somebody)"],
        "none": [f"no token to push to '{PUBLIC}' with. Set HF_TOKEN"],
        "all problems": ["3 errors:", "'no-org' is not a name on a hub", "no token", "'embedded:t5-mini' is a base model"],
        "overrides": ["leave out a.b=1"],
    }.items():
        assert answer[name]["code"] == 2
        assert all(word in answer[name]["err"] for word in words), answer[name]["err"]
    assert answer["dry run"]["code"] == 0
    assert ("models", PUBLIC) not in hub.repos
    assert ("datasets", PUBLIC) not in hub.repos


def test_an_unreachable_hub_ends_in_an_error(stopped_hub: Hub, copied: Path) -> None:
    refused = run_check(find_no_hub, stopped_hub, copied)
    assert refused["code"] == 2
    assert f"cannot push to '{PUBLIC}': the hub cannot be reached. Check the network" in refused["err"]
    assert refused["seconds"] < 120
