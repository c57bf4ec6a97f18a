"""Engines that think nothing and misbehave. Ray's workers import them from here, and little else."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from cotd.teachers.store import new_completion


class Fragile:
    """Dies of a deadly prompt, and fails at an odd one."""

    def __init__(self, arguments: dict[str, Any]):
        self.clean = True

    def complete(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        assert self.clean, "after an error that nobody expected an engine is not asked again"
        for prompt in batch["prompt"]:
            if "deadly" in prompt:
                os._exit(1)
            if "odd" in prompt:
                self.clean = False
                raise RuntimeError("CUDA error: an illegal memory access\nand a long trace")
        return {
            "completion": [
                json.dumps(new_completion(k, text=json.loads(p))) for k, p in zip(batch["key"], batch["prompt"], strict=True)
            ]
        }


class Stillborn(Fragile):
    def __init__(self, arguments: dict[str, Any]):
        raise ValueError("no such model")


class Unequal(Fragile):
    """Of several, the one that makes the folder first is slow."""

    def __init__(self, arguments: dict[str, Any]):
        super().__init__(arguments)
        try:
            os.mkdir(arguments["model"])
            self.seconds = 1.0
        except FileExistsError:
            self.seconds = 0.02

    def complete(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        time.sleep(self.seconds)
        by = f"by {os.getpid()}"
        return {"completion": [json.dumps(new_completion(key, text=by)) for key in batch["key"]]}


class Dies:
    """A stage of Ray Data that dies of what Fragile dies of."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return Fragile({}).complete({name: list(values) for name, values in batch.items()})
