"""The completion store: what was written is found again, whatever happens to shards and connections."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.teachers import store as store_module
from cotd.teachers.requests import Request
from cotd.teachers.store import CompletionStore, new_completion

completions = st.fixed_dictionaries(
    {
        "key": st.integers(0, 12).map(lambda n: f"{n:032x}"),
        "text": st.text(),
        "logprob": st.none() | st.floats(-1000, 0),
        "label_logprobs": st.none() | st.lists(st.floats(-100, 0), min_size=2, max_size=2),
        "finish_reason": st.sampled_from(["stop", "length", None]),
        "prompt_tokens": st.integers(0, 2**20),
        "output_tokens": st.integers(0, 2**20),
        "error": st.none() | st.just("out of memory"),
    }
)
shards = st.lists(st.lists(completions, max_size=6, unique_by=lambda c: c["key"]), max_size=5)


@settings(max_examples=25)
@given(shards, st.sets(st.integers(0, 15).map(lambda n: f"{n:032x}")), st.booleans())
def test_completions_are_found_and_nothing_else(written: list[list[dict[str, Any]]], keys: set[str], killed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "completions"
        store = CompletionStore(directory)
        for shard in written:
            store.append(shard)
        if killed:
            directory.mkdir(exist_ok=True)
            (directory / ".00000000000000000001-aa.parquet.part").write_bytes(b"PAR1 half a shar")
        again = CompletionStore(directory).find(keys)
        answered = {c["key"]: c for shard in written for c in shard if c["error"] is None}
        assert again == {k: c for k, c in answered.items() if k in keys}


@pytest.mark.parametrize("folder", ["a [1] * ? {x,y}/completions", "memory://kept [1] * ? {x,y}"])
def test_a_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    where = folder if folder.startswith("memory:") else tmp_path / folder
    CompletionStore(where).append([new_completion("k", text="fine")])
    assert CompletionStore(where).find(["k"])["k"]["text"] == "fine"


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:40] + b"\xff" * 80 + b[120:]])
def test_a_damaged_shard_is_skipped(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = CompletionStore(tmp_path)
    store.append([new_completion("lost", text="a" * 500)])
    (shard,) = tmp_path.glob("*.parquet")
    shard.write_bytes(damage(shard.read_bytes()))
    store.append([new_completion("kept", text="fine")])
    again = CompletionStore(tmp_path)
    assert set(again.find(["lost", "kept"])) == {"kept"}
    assert again.unreadable == [str(shard)]
    again.append([new_completion("lost", text="asked again")])
    assert again.find(["lost"])["lost"]["text"] == "asked again"


def test_a_remote_store_is_retried_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CompletionStore("memory://flaky")
    put, failing = store.files.pipe_file, [ConnectionError("reset"), ConnectionError("reset")]

    def pipe_file(*arguments: Any, **more: Any) -> None:
        if failing:
            raise failing.pop()
        put(*arguments, **more)

    monkeypatch.setattr(store_module, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(store.files, "pipe_file", pipe_file, raising=False)
    store.append([new_completion("k", text="fine")])
    assert set(store.find(["k"])) == {"k"}
    failing += [ConnectionError("reset")] * 3
    with pytest.raises(CotdError, match=r"1 completions cannot be kept in teacher\.store .*ConnectionError: reset"):
        store.append([new_completion("k2", text="fine")])


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CotdError, match="cannot be written: NotADirectoryError"):
        CompletionStore(tmp_path / "file" / "completions").require_writable()
    CompletionStore(tmp_path / "new").require_writable()
    assert not list((tmp_path / "new").iterdir())


def test_a_completion_after_a_failure_counts(tmp_path: Path) -> None:
    blank = {"text": "", "logprob": None, "label_logprobs": None, "finish_reason": None, "prompt_tokens": 0, "output_tokens": 0}
    failed = {"key": "k", "error": "out of memory", **blank}
    store = CompletionStore(tmp_path)
    store.append([failed])
    assert store.find(["k"]) == {}
    store.append([failed | {"text": "fine", "error": None}])
    store.append([failed])
    assert store.find(["k"])["k"]["text"] == "fine"


def test_a_key_covers_all_that_decides_the_completion() -> None:
    request = Request("teacher", "r1", "Review: fine", {"max_tokens": 4, "seed": 0})
    assert request.key == Request("teacher", "r1", "Review: fine", {"seed": 0, "max_tokens": 4}).key
    others = [
        Request("student", "r1", "Review: fine", {"max_tokens": 4, "seed": 0}),
        Request("teacher", "r2", "Review: fine", {"max_tokens": 4, "seed": 0}),
        Request("teacher", "r1", "Review: fine ", {"max_tokens": 4, "seed": 0}),
        Request("teacher", "r1", "Review: fine", {"max_tokens": 4, "seed": 1}),
    ]
    assert len({request.key, *(r.key for r in others)}) == 5
