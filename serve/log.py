"""The endpoint's log."""

from __future__ import annotations

import logging

LOG = logging.getLogger("ray.serve.cotd")  # Serve writes what its children log to the replica's file
