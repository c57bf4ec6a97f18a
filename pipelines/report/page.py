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
        width = re.search(r'width="([\d.]+pt)"', drawing)
        # On a narrow screen a figure, too, scrolls by itself: scaled down its words could not be read.
        least = f' style="min-width: min(34rem, {width[1]})"' if width else ""
        drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(tokens[i].content)}"{least}', 1)
        return drawing and f'<span class="scrolls" tabindex="0">{drawing}</span>'

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
