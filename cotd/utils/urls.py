"""What an address must not hold."""

from __future__ import annotations

from urllib.parse import urlsplit


def credentials_problem(url: str) -> str | None:
    """What is wrong with an address that holds a user or a password, or None: addresses end up in files, logs and errors."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if "://" not in url or "@" not in parts.netloc:
        return None
    if parts.scheme in ("http", "https"):
        advice = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the service's own variables, instead"
    else:
        advice = "Put them where the database's or store's client looks for them, such as ~/.pgpass"
    return f"the address holds credentials, which would be written to files and logs. Leave them out. {advice}"


def without_credentials(url: str | None) -> str | None:
    """The address of a setting; ValueError if it holds a user or a password."""
    if url and (problem := credentials_problem(url)):
        raise ValueError(problem)
    return url
