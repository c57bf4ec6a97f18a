"""The processes that commands under test leave behind, found by a mark in their environment."""

from __future__ import annotations

import psutil


def marked(environment: dict[str, str]) -> list[str]:
    """The command lines of the processes that carry the environment's COTD_TEST_MARK."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("COTD_TEST_MARK") == environment["COTD_TEST_MARK"]:
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    return found
