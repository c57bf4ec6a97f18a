"""Requests to a teacher, and the append-only store of what it answered: cache and resume are the same thing."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    {
        "key": pa.string(),  # of the request: Request.key
        "text": pa.string(),  # what the teacher wrote
        "logprob": pa.float64(),  # natural log, summed over the written tokens; null for label scores
        "label_logprobs": pa.list_(pa.float64()),  # of the label words, in the task's order; null for written answers
        "finish_reason": pa.string(),  # "stop" or "length"
        "prompt_tokens": pa.int32(),
        "output_tokens": pa.int32(),
        "error": pa.string(),  # null, or why there is no answer
    }
)


@dataclass(frozen=True)
class Request:
    """One prompt to one teacher.

    Attributes:
        sampling: the sampling parameters as plain JSON; requests of one batch have the same keys.
    """

    teacher: str
    revision: str
    prompt: str
    sampling: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Content address: 32 hex digits of the SHA-256 of all that decides the answer."""
        content = json.dumps([self.teacher, self.revision, self.prompt, self.sampling], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


class CompletionStore:
    """Parquet shards of completions under one folder, each written to a temporary name and renamed.

    Writers never touch one another's shards, so several runs may share a store; a key that two of them answered
    counts once. Failed completions are kept as a record, and asked for again.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    def append(self, completions: Sequence[dict[str, Any]]) -> None:
        """Adds one shard. Each completion has the columns of SCHEMA."""
        if not completions:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        scratch = self.directory / f".{name}.part"
        pq.write_table(pa.Table.from_pylist(list(completions), schema=SCHEMA), scratch)
        scratch.rename(self.directory / name)

    def answers(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """key → its completion, for those of `keys` that were answered without an error."""
        wanted = set(keys)
        found: dict[str, dict[str, Any]] = {}
        for shard in sorted(self.directory.glob("*.parquet")) if wanted else []:
            table = pq.read_table(shard, schema=SCHEMA)
            keep = pa.array([k in wanted for k in table["key"].to_pylist()])
            found |= {row["key"]: row for row in table.filter(keep).to_pylist() if row["error"] is None}
        return found
