"""Content digests of plain values."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(plain: Any) -> str:
    """16 hex digits that identify a JSON-able value, whatever the order of its keys."""
    canonical = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
