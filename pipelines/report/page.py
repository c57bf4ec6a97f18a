"""The report as one HTML page: the Markdown with its figures inside, for light and dark screens, loading nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def report_page(title: str, text: str, drawings: Mapping[str, str]) -> str:
    """The page.

    Args:
        text: the report's Markdown. HTML in it is shown as text.
        drawings: a figure's file name → its SVG element, in the page's own text colour.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(self: Any, tokens: Sequence[Any], i: int, *_: Any) -> str:
        drawing = drawings.get(str(tokens[i].attrs["src"]), "")  # "" for an image in a name, which is not ours to load
        return drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(tokens[i].content)}"', 1)

    def heading(self: Any, tokens: Sequence[Any], i: int, *_: Any) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", tokens[i + 1].content.lower().replace("'", "")).strip("-")
        return f'<{tokens[i].tag} id="{name}">'

    reader.add_render_rule("image", image)
    reader.add_render_rule("heading_open", heading)
    # A wide table scrolls by itself, and not with the page; the keyboard reaches it.
    reader.add_render_rule("table_open", lambda *_: '<div class="scrolls" tabindex="0"><table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("<!--TITLE-->", html.escape(title)).replace("<!--BODY-->", reader.render(text))
