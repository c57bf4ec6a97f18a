"""Trials in a study's folder that were trained with other settings than those of the command that is run now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cotd.study.config import StudyConfig
from cotd.training.folder import TrialFolder

# They do not decide what is trained, or differ from trial to trial.
IGNORED = ("grid", "resources", "tracking", "storage", "name")
MOST = 5  # settings that are named


def finished_elsewhere(config: StudyConfig, planned: Iterable[str]) -> list[TrialFolder]:
    """The finished trials in the study's folder that are not among the planned ones, the newest last."""
    known = set(planned)
    results = sorted(config.directory.glob("trials/*/result.json"), key=lambda path: path.stat().st_mtime)
    return [TrialFolder(path.parent) for path in results if path.parent.name not in known]


def describe_others(config: StudyConfig, others: list[TrialFolder]) -> str:
    """A sentence on what differs from the newest of some other trials, and what to do."""
    count = f"{len(others)} finished trial{'s' if len(others) > 1 else ''} in {config.directory}"
    try:
        theirs, ours = (dict(flat(plain)) for plain in (others[-1].config(), config.model_dump()))
    except (OSError, ValueError, KeyError):
        return f"{count} had other settings."
    keys = [k for k in sorted(theirs.keys() | ours.keys()) if theirs.get(k) != ours.get(k)]
    named = ", ".join(f"{k}={theirs.get(k)} (now {ours.get(k)})" for k in keys[:MOST]) + (", …" if len(keys) > MOST else "")
    why = f"had other settings ({named})" if keys else "were of other examples, annotations, base models, or cells of the grid"
    return f"{count} {why}. To go on with them, give the overrides that the sweep had."


def flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by their keys, "training.steps"."""
    for key, value in plain.items():
        if prefix or key not in IGNORED:
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
