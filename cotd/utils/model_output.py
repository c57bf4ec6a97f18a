"""What language models write around what they were asked for: thoughts, Markdown, more than one JSON object."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

# How models mark their thoughts: <think>, <thought>, <seed:think>, [THINK], ◁think▷ and the like. Some templates write the
# opening mark into the prompt, so that only the closing one is seen.
_THOUGHT = r"(?:\w{1,12}:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_THOUGHT_BEGIN = re.compile(rf"<\s*{_THOUGHT}\s*>|\[think\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
_THOUGHT_END = re.compile(rf"<\s*/\s*{_THOUGHT}\s*>|\[/think\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE)
# The Harmony format of gpt-oss names a channel before each message; "final" is the one meant to be read.
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>", re.IGNORECASE)
_MARKER = re.compile(r"<\|(?:end|return|start|im_end|eot_id|endoftext)\|>")
# A text that is nothing but opening braces has as many places to begin as characters.
MOST_BEGINNINGS, LONGEST_LITERAL = 400, 20_000


def without_thoughts(text: str) -> str:
    """What a model wrote after its thoughts; what precedes them if they do not end."""
    if final := list(_FINAL_CHANNEL.finditer(text)):
        text = _MARKER.split(text[final[-1].end() :])[0]
    if ends := list(_THOUGHT_END.finditer(text)):
        text = text[ends[-1].end() :]
    if begins := _THOUGHT_BEGIN.search(text):
        text = text[: begins.start()]
    return text


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, outermost ones and those in them, in the order of their beginnings.

    Line breaks within strings are allowed; so are Python's quotes and a last comma, and a text that is JSON in a JSON string. Keys
    are in small letters; a list of one string is that string.
    """
    if text.lstrip().startswith('"'):
        with contextlib.suppress(ValueError, RecursionError):
            text = str(json.loads(text))
    objects: list[dict[str, Any]] = []
    position = text.find("{")
    for _ in range(MOST_BEGINNINGS):
        if position < 0:
            break
        value, end = _decode(text, position)
        if isinstance(value, dict):
            objects += _nested(value)
        position = text.find("{", end)
    return objects


def _decode(text: str, position: int) -> tuple[Any, int]:
    """(The object that begins at a position, or None; where to look on)."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, position)
    except (ValueError, RecursionError):
        pass
    end = text.find("}", position) + 1
    if 0 < end - position <= LONGEST_LITERAL:
        try:
            return ast.literal_eval(text[position:end]), end
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return None, position + 1


def _nested(value: Any) -> Iterator[dict[str, Any]]:
    """An object and those in it."""
    waiting = [value]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, dict):
            yield {str(key).strip().casefold(): only_one(item) for key, item in part.items()}
            waiting = [*part.values(), *waiting]
        elif isinstance(part, list):
            waiting = [*part, *waiting]


def only_one(value: Any) -> Any:
    """The string of a list that has no other entry, else the value itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value
