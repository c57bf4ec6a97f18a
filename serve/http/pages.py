"""The pages at `/` and `/docs`: one HTML file each, without a build step or files from other servers."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse

PAGE = Path(__file__).with_name("page.html")
DOCS = Path(__file__).with_name("docs.html")


@cache
def page_response(file: Path = PAGE) -> HTMLResponse:
    """A page, with a policy that allows its own script and style only, and requests to its own endpoint only."""
    html = file.read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": inline_hash(html, "script"),
        "style-src": inline_hash(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(html, headers=headers)


def inline_hash(html: str, tag: str) -> str:
    """The Content-Security-Policy source of the page's one inline `tag`."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
