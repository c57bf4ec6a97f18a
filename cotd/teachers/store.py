"""Requests to a teacher, and the append-only store of what it answered: cache and resume are the same thing."""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cotd.errors import CotdError
from cotd.progress import say
from cotd.utils.files import write_bytes
from cotd.utils.iteration import batched
from cotd.utils.keys import encode_keys, positions_in
from cotd.utils.text import describe_error

SCHEMA = pa.schema(
    {
        "key": pa.string(),  # of the request: Request.key
        "text": pa.string(),  # what the teacher wrote
        "logprob": pa.float64(),  # natural log, summed over the written tokens; null for label scores
        "label_logprobs": pa.list_(pa.float64()),  # of the label words, in the task's order; null for written answers
        "finish_reason": pa.string(),  # "stop" or "length"; of a failure: null, or "refused" if it would fail again
        "prompt_tokens": pa.int32(),
        "output_tokens": pa.int32(),
        "error": pa.string(),  # null, or why there is no answer
    }
)

# Waits before each further try to put a shard into a remote store: 15 s in all, after which it is not a hiccup.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
# What looking for new shards may take of the time: a store of 30,000 takes seconds to list at a cloud provider.
LISTING_SHARE = 0.1

# What a row of the store is.
ANSWERED, FAILED, REFUSED = 0, 1, 2
REFUSED_REASON = "refused"

Completion = dict[str, Any]  # a row with the columns of SCHEMA


def completion(key: str, **values: Any) -> dict[str, Any]:
    """A completion with the columns of SCHEMA; those not given are None."""
    return {"key": key} | dict.fromkeys(SCHEMA.names[1:]) | values


class CompletionStore:
    """Parquet shards of completions under one folder, or any other place that fsspec knows.

    A shard appears whole or not at all: on a disk it is written to a temporary name and renamed, elsewhere it is put
    in one piece. Writers never touch one another's shards, so several runs may share a store; a key that two of them
    answered counts once. Failed completions are kept as a record. Shards that others add are noticed soon: looking for
    them takes no more than LISTING_SHARE of the time.

    Args:
        directory: a folder, or an fsspec URL such as s3://bucket/completions (which needs that protocol's package).

    Attributes:
        unreadable: shards that were passed over, as their content is damaged; what they held counts as not answered.

    Raises:
        CotdError: there is no such protocol, or its package is not installed.
    """

    def __init__(self, directory: Path | str):
        try:
            self.files, self.directory = fsspec.core.url_to_fs(str(directory))
        except (ImportError, ValueError) as error:
            raise CotdError(
                f"teacher.store '{directory}' cannot be used: {error}. Give a folder, or pip install it."
            ) from error
        self.unreadable: list[str] = []
        self._shards: list[str] = []
        self._list_again = 0.0  # time.monotonic() before which no new shards are looked for
        # Of each known key, where its row is that counts: sorted, some 20 bytes each.
        self._keys = np.empty(0, dtype="S16")
        self._shard, self._state = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int8)

    def require_writable(self) -> None:
        """Raises a CotdError unless answers can be kept: before any is paid for."""
        try:
            self._put(".writable", b"")
        except Exception as error:  # each protocol's package raises kinds of its own
            raise CotdError(
                f"teacher.store '{self.directory}' cannot be written: {describe_error(error)}. Answers could not be kept. "
                "Mend its permissions, or name another folder or URL."
            ) from error
        with contextlib.suppress(Exception):  # who may only add leaves an empty file
            self.files.rm_file(f"{self.directory}/.writable")

    def append(self, completions: Sequence[dict[str, Any]]) -> None:
        """Adds one shard. Each completion has the columns of SCHEMA.

        Raises:
            CotdError: it cannot be written; to a remote store, after some tries.
        """
        if not completions:
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(completions), schema=SCHEMA), buffer)
        # A full disk does not mend itself; a connection does.
        waits = () if isinstance(self.files, LocalFileSystem) else RETRY_SECONDS
        for wait in (*waits, None):
            try:
                self._put(name, buffer.getvalue())
                break
            except Exception as error:
                if wait is None:
                    raise CotdError(
                        f"{len(completions):,} answers cannot be kept in teacher.store '{self.directory}': {describe_error(error)}. "
                        "Those before them are; mend it and run again to go on."
                    ) from error
                time.sleep(wait)
        self._list_again = 0.0

    def _put(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole, and that a power cut does not take back."""
        self.files.makedirs(self.directory, exist_ok=True)
        if not isinstance(self.files, LocalFileSystem):
            self.files.pipe_file(f"{self.directory}/{name}", content)
            return
        write_bytes(Path(self.directory) / name, content, durable=True)

    def answers(self, keys: Iterable[str], states: Collection[int] = (ANSWERED,)) -> dict[str, dict[str, Any]]:
        """key → its completion, for those of `keys` that are in the store.

        Args:
            states: which to return: ANSWERED, by default only these, FAILED (may do better another time), REFUSED (will not).
        """
        self._refresh()
        wanted = list(dict.fromkeys(keys))
        of_shard: dict[int, set[str]] = {}
        for key, place in zip(wanted, positions_in(self._keys, encode_keys(wanted)).tolist(), strict=True):
            if place >= 0 and self._state[place] in states:
                of_shard.setdefault(int(self._shard[place]), set()).add(key)
        found: dict[str, dict[str, Any]] = {}
        for block in batched(sorted(of_shard), 64):
            for number, table in zip(block, self._read([self._shards[n] for n in block]), strict=True):
                keep = pa.array([k in of_shard[number] for k in table["key"].to_pylist()])
                found |= {
                    row["key"]: row for row in table.filter(keep).to_pylist() if row["error"] is None or row["key"] not in found
                }
        return found

    def _refresh(self) -> None:
        """Adds the shards that have appeared since to the index."""
        started = time.monotonic()
        if started < self._list_again:
            return
        self.files.invalidate_cache()
        known = set(self._shards)
        new = [shard for shard in self._listed() if shard not in known]
        self._list_again = time.monotonic() + (time.monotonic() - started) / LISTING_SHARE
        if not new:
            return
        parts = [(self._keys, self._shard, self._state)]
        for block in batched(new, 64):
            for shard, table in zip(block, self._read(block, ["key", "error", "finish_reason"]), strict=True):
                refused = pc.equal(pc.fill_null(table["finish_reason"], ""), REFUSED_REASON)
                state = pc.if_else(pc.is_null(table["error"]), ANSWERED, pc.if_else(refused, REFUSED, FAILED)).cast(pa.int8())
                number = np.full(len(table), len(self._shards), dtype=np.int32)
                parts.append((encode_keys(table["key"].to_pylist()), number, state.to_numpy()))
                self._shards.append(shard)
        keys, shards, states = (np.concatenate(column) for column in zip(*parts, strict=True))
        del parts
        # An answer counts before a failure, and a later one before an earlier.
        order = np.lexsort((-shards, states != ANSWERED, keys))
        keys = keys[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._shard, self._state = keys[first], shards[order][first], states[order][first]

    def _listed(self) -> list[str]:
        """The shards that are there, oldest first. Nothing here expands patterns: a folder may be called `runs [old]`."""
        try:
            paths = self.files.ls(self.directory, detail=False)
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever kept here
            return []
        except Exception as error:
            raise CotdError(f"teacher.store '{self.directory}' cannot be read: {describe_error(error)}.") from error
        names = ((path.rpartition("/")[2], path) for path in paths)
        return [path for name, path in sorted(names) if name.endswith(".parquet") and not name.startswith(".")]

    def _read(self, shards: Sequence[str], columns: list[str] | None = None) -> list[pa.Table]:
        """The rows of some shards, which remote stores fetch side by side; none of one that is damaged.

        Raises:
            CotdError: a shard cannot be fetched. It is not passed over, as what it holds would be paid for again.
        """
        contents = self.files.cat_ranges(list(shards), None, None)  # `cat` expands patterns
        tables = []
        for shard, content in zip(shards, contents, strict=True):
            if isinstance(content, Exception):
                raise CotdError(f"teacher.store: cannot read {shard}: {describe_error(content)}. Run again.") from content
            try:
                tables.append(pq.read_table(io.BytesIO(content), schema=SCHEMA, columns=columns))
            except (pa.ArrowException, OSError):
                if shard not in self.unreadable:
                    self.unreadable.append(shard)
                    say(f"  warning: {shard} is damaged; the answers in it are asked for again")
                tables.append(SCHEMA.empty_table().select(columns or SCHEMA.names))
        return tables
