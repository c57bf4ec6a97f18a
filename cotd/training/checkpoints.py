"""Checkpoints of an interrupted training: which is whole, and where its best one lies now."""

from __future__ import annotations

import json
from pathlib import Path

from cotd.utils.files import write_json


def latest_checkpoint(directory: Path) -> str | None:
    """The newest complete checkpoint of a killed attempt, or None.

    The Trainer writes its state after everything else: where that can be read, the rest is there.
    """
    found = [p for p in directory.glob("checkpoint-*") if readable_state(p / "trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None


def adopt_checkpoint(checkpoint: Path) -> None:
    """Has a checkpoint say where the best one lies now: the Trainer notes a path, which was another machine's perhaps, and
    forgets the best one where that is not there."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    if (noted := state.get("best_model_checkpoint")) and Path(noted) != (here := checkpoint.parent / Path(noted).name):
        write_json(path, {**state, "best_model_checkpoint": str(here)})


def readable_state(path: Path) -> bool:
    """Whether a checkpoint's state is all there: a kill or a full disk may have cut it off."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
