"""Optional packages of runtimes and exports, and the pip command that installs those that are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import sys
from collections.abc import Sequence

from cotd.errors import CotdError


def installed(packages: Sequence[str]) -> bool:
    """Whether all packages can be imported; each is imported by the name that pip knows it by."""
    return all(importlib.util.find_spec(package) for package in packages)


def require_packages(user: str, packages: Sequence[str]) -> None:
    """Raises a CotdError with the pip command if any of the packages that `user` needs is not installed."""
    if not installed(packages):
        command = f"{sys.executable} -m pip install {shlex.join(with_bounds(packages))}"
        raise CotdError(f"{user} needs packages that are not installed. Run: {command}")


def with_bounds(packages: Sequence[str]) -> list[str]:
    """The packages with cotd's bounds on their versions; without, where cotd itself is not installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("cotd") or []]
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    bounds = {requirement.name: str(requirement.specifier) for requirement in requirements}
    return [name + bounds.get(name, "") for name in packages]
