"""What stands in for an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cotd.teachers.requests import Request


def nobody(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
    """An engine that must not be asked."""
    raise AssertionError(f"asked again: {next(iter(requests)).prompt}")


def prompts(double: Any) -> list[str]:
    """What a `tests.conftest.FakeTeacher` was asked."""
    return [request.prompt for request in double.asked]
