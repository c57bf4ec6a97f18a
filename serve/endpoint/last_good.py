"""The student that an endpoint served last, remembered on disk: a replica that starts has it to fall back to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cotd.utils.files import read_json, write_json

FILE = "last-good.json"


@dataclass(frozen=True)
class LastGood:
    """One student that passed its check.

    Attributes:
        source: what the endpoint was told to serve, `models:/NAME@ALIAS` for one.
        name, version: of the student that it stood for.
        folder: where that student lies, so that it can be loaded while the registry is away.
    """

    source: str
    name: str
    version: str
    folder: str

    def write(self, folder: Path) -> None:
        """Puts it in place of what an earlier student left there; replicas of one machine share the folder."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path, source: str) -> LastGood | None:
        """What was last served for `source`, or None where that is unknown or gone."""
        try:
            found = cls(**read_json(folder / FILE))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.source == source and Path(found.folder).is_dir() else None
