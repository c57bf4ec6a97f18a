"""The append-only store of what a teacher wrote, by request: cache and resume are the same thing."""

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
        "label_logprobs": pa.list_(pa.float64()),  # of the label words, in the task's order; null for written completions
        "finish_reason": pa.string(),  # "stop" or "length"; of a failure: null, or "refused" if it would fail again
        "prompt_tokens": pa.int32(),
        "output_tokens": pa.int32(),
        "error": pa.string(),  # null, or why there is no completion
    }
)

# Waits before each retry of putting a shard into a remote store: 15 s in all.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
# The share of the time that looking for new shards may take: a cloud provider lists 30,000 in seconds.
LISTING_SHARE = 0.1

# The state of a request.
COMPLETED, FAILED, REFUSED = 0, 1, 2
REFUSED_REASON = "refused"

Completion = dict[str, Any]  # a row with the columns of SCHEMA


def new_completion(key: str, **values: Any) -> Completion:
    """A completion with the columns of SCHEMA; None for those that are not given."""
    return {"key": key} | dict.fromkeys(SCHEMA.names[1:]) | values


class CompletionStore:
    """Parquet shards of completions in one folder, on any file system that fsspec knows.

    A shard appears whole or not at all: on a disk it is written to a temporary name and renamed, elsewhere it is put in
    one piece. Several runs may share a store, as no writer touches another's shards; they soon notice new ones. Of several
    completions of a key one counts. Failed completions are kept as a record.

    Args:
        directory: a folder, or an fsspec URL such as s3://bucket/completions (which needs that protocol's package).

    Attributes:
        unreadable: damaged shards, which are skipped; their completions are requested again.

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
        # Sorted keys, and of each the shard of the completion that counts, and the state: some 20 bytes each.
        self._keys = np.empty(0, dtype="S16")
        self._shard, self._state = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int8)

    def require_writable(self) -> None:
        """Raises a CotdError unless completions can be kept: before any is paid for."""
        try:
            self._put(".writable", b"")
        except Exception as error:  # each protocol's package has its own kinds of errors
            raise CotdError(
                f"teacher.store '{self.directory}' cannot be written: {describe_error(error)}. Fix its permissions, or name "
                "another folder or URL."
            ) from error
        with contextlib.suppress(Exception):  # without the right to delete, an empty file stays
            self.files.rm_file(f"{self.directory}/.writable")

    def append(self, completions: Sequence[Completion]) -> None:
        """Adds one shard.

        Raises:
            CotdError: it cannot be written; to a remote store, after some retries.
        """
        if not completions:
            return
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(completions), schema=SCHEMA), buffer)
        # A connection may recover; a full disk does not.
        waits = () if isinstance(self.files, LocalFileSystem) else RETRY_SECONDS
        for wait in (*waits, None):
            try:
                self._put(name, buffer.getvalue())
                break
            except Exception as error:
                if wait is None:
                    raise CotdError(
                        f"{len(completions):,} completions cannot be kept in teacher.store '{self.directory}': "
                        f"{describe_error(error)}. Earlier ones are kept: fix the store and run again to resume."
                    ) from error
                time.sleep(wait)
        self._list_again = 0.0

    def _put(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole and survives a power cut."""
        self.files.makedirs(self.directory, exist_ok=True)
        if not isinstance(self.files, LocalFileSystem):
            self.files.pipe_file(f"{self.directory}/{name}", content)
            return
        write_bytes(Path(self.directory) / name, content, durable=True)

    def find(self, keys: Iterable[str], states: Collection[int] = (COMPLETED,)) -> dict[str, Completion]:
        """key → its completion, for those of `keys` that are in the store.

        Args:
            states: which to return: COMPLETED, FAILED (may do better another time), REFUSED (will not).
        """
        self._refresh()
        keys = list(dict.fromkeys(keys))
        keys_of_shard: dict[int, set[str]] = {}
        for key, position in zip(keys, positions_in(self._keys, encode_keys(keys)).tolist(), strict=True):
            if position >= 0 and self._state[position] in states:
                keys_of_shard.setdefault(int(self._shard[position]), set()).add(key)
        completions: dict[str, Completion] = {}
        for block in batched(sorted(keys_of_shard), 64):
            for number, table in zip(block, self._read([self._shards[n] for n in block]), strict=True):
                rows = table.filter(pa.array([key in keys_of_shard[number] for key in table["key"].to_pylist()])).to_pylist()
                completions |= {row["key"]: row for row in rows if row["error"] is None or row["key"] not in completions}
        return completions

    def _refresh(self) -> None:
        """Adds the shards that have appeared since the last time to the index."""
        started = time.monotonic()
        if started < self._list_again:
            return
        self.files.invalidate_cache()
        new = sorted(set(self._listed()).difference(self._shards))
        self._list_again = time.monotonic() + (time.monotonic() - started) / LISTING_SHARE
        if not new:
            return
        parts = [(self._keys, self._shard, self._state)]
        for block in batched(new, 64):
            for shard, table in zip(block, self._read(block, ["key", "error", "finish_reason"]), strict=True):
                refused = pc.equal(pc.fill_null(table["finish_reason"], ""), REFUSED_REASON)
                state = pc.if_else(pc.is_null(table["error"]), COMPLETED, pc.if_else(refused, REFUSED, FAILED)).cast(pa.int8())
                number = np.full(len(table), len(self._shards), dtype=np.int32)
                parts.append((encode_keys(table["key"].to_pylist()), number, state.to_numpy()))
                self._shards.append(shard)
        keys, shards, states = (np.concatenate(column) for column in zip(*parts, strict=True))
        del parts
        # A completion counts before a failure, and a later one before an earlier.
        order = np.lexsort((-shards, states != COMPLETED, keys))
        keys = keys[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._shard, self._state = keys[first], shards[order][first], states[order][first]

    def _listed(self) -> list[str]:
        """The shards that are there. Nothing here expands patterns, as a folder may be called `runs [old]`."""
        try:
            paths = self.files.ls(self.directory, detail=False)
        except (FileNotFoundError, NotADirectoryError):  # a new store
            return []
        except Exception as error:
            raise CotdError(f"teacher.store '{self.directory}' cannot be read: {describe_error(error)}.") from error
        return [path for path in paths if path.endswith(".parquet") and not path.rpartition("/")[2].startswith(".")]

    def _read(self, shards: Sequence[str], columns: list[str] | None = None) -> list[pa.Table]:
        """The rows of some shards, which remote stores fetch in parallel; none of a damaged one.

        Raises:
            CotdError: a shard cannot be fetched. It is not skipped, as its completions would be paid for again.
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
                    say(f"  warning: {shard} is damaged; its completions are requested again")
                tables.append(SCHEMA.empty_table().select(columns or SCHEMA.names))
        return tables
