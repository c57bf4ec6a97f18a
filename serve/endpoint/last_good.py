"""The student that an endpoint served last, recorded on disk: what a replica that starts falls back to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cotd.utils.files import read_json, write_json

FILE = "last-good.json"


@dataclass(frozen=True)
class LastGood:
    """One student that passed its check.

    Attributes:
        source: what the endpoint serves, for example `models:/NAME@ALIAS`.
        name, version: the student that `source` named.
        folder: that student's files, so that it can be loaded while the registry is unreachable.
    """

    source: str
    name: str
    version: str
    folder: str

    def write(self, folder: Path) -> None:
        """Replaces the record of an earlier student; replicas of one machine share the folder."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path, source: str) -> LastGood | None:
        """What was last served for `source`, or None if that is unknown or gone."""
        try:
            last = cls(**read_json(folder / FILE))
        except (OSError, ValueError, TypeError):
            return None
        return last if last.source == source and Path(last.folder).is_dir() else None
