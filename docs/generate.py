"""MkDocs hook: fills in the pages and tables that are generated from the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def configuration() -> str:
    """A table for each block of a study, from its pydantic fields."""
    from cotd.study.config import StudyConfig

    return "\n".join(block_lines(StudyConfig, ""))


def block_lines(block: type[BaseModel], path: str) -> Iterator[str]:
    yield f"\n## {path or 'The study'}\n"
    if block.__doc__:
        yield block.__doc__.split("\n\n")[0].strip() + "\n"
    yield "| key | type | default | what it is |\n|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in block.model_fields.items():
        inner = nested_block(field.annotation)
        if inner:
            nested.append((f"{path}.{name}".lstrip("."), inner))
        default = (
            "required" if field.is_required() else "" if inner else f"`{shown(field.get_default(call_default_factory=True))}`"
        )
        kind = linked(type_name(field.annotation), inner, anchor(path, name))
        yield f"| `{name}` | {kind} | {default} | {cell(field.description or '')} |"
    for where, inner in nested:
        yield from block_lines(inner, where)


def anchor(path: str, name: str) -> str:
    """The id that MkDocs gives the heading of a block."""
    return f"{path}.{name}".lstrip(".").replace(".", "").lower()


def nested_block(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, also in a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((block for argument in get_args(annotation) if (block := nested_block(argument))), None)


def type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    name = re.sub(r"\b(?:typing|cotd[\w.]*)\.(?=\w)", "", name)
    name = re.sub(r"Literal\[(.*?)\]", lambda match: match.group(1).replace(", ", " | "), name)
    return re.sub(r"\bNone\b", "null", re.sub(r"Annotated\[(\w+), .*\]", r"\1", name))


def linked(kind: str, block: type[BaseModel] | None, target: str) -> str:
    """A type as a reader of YAML knows it: a block by a link to its table, not by the name of its class."""
    if not block:
        return f"`{kind}`"
    link = f"[block](#{target})"
    forms = {"list[": f"list of {link.replace('block', 'blocks')}", "dict[": f"name → {link}"}
    form = next((text for start, text in forms.items() if kind.startswith(start)), link)
    return form + (" or `null`" if "null" in kind else "")


def shown(value: Any) -> str:
    return "" if value is PydanticUndefined else "null" if value is None else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def commands() -> str:
    """Each command's help, from typer."""
    import typer

    from cotd.cli import app

    root = typer.main.get_command(app)
    return "\n".join(command_lines(root, "cotd"))


def command_lines(command: Any, name: str) -> Iterator[str]:
    if children := getattr(command, "commands", None):
        for child, inner in children.items():
            yield from command_lines(inner, f"{name} {child}")
        return
    context = command.make_context(name, [], resilient_parsing=True)
    yield f"\n## {name}\n\n```\n{command.get_help(context)}\n```"


def methods() -> str:
    """The methods' table."""
    from cotd.training.methods import METHODS

    roles = {
        "target": "a target", "joint_target": "first part of the label's target", "after_label": "last part of the label's target",
        "input": "an input",
    }  # fmt: skip
    rationales = {"given_gold": "the teacher's, given the gold label", "own": "the teacher's, with its own label"}
    lines = ["| id | name in the papers | label target | rationale |", "|---|---|---|---|"]
    for method in METHODS.values():
        rationale = f"{roles[method.rationale_as]}: {rationales[method.rationale]}" if method.rationale else "none"
        labels = ", then ".join(part.labels for part in method.parts) + ", each answer by its probability" * method.soft
        lines.append(f"| `{method.name}` | {method.title} | {labels} | {rationale} |")
    return "\n".join(lines)


GENERATED: dict[str, Callable[[], str]] = {
    "configuration": configuration, "commands": commands, "methods": methods, "nothing": str,
}  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: replaces `<!-- generated: NAME -->`, and what follows it up to `<!-- end -->`, by what NAME gives."""
    return re.sub(
        r"<!-- generated: (\w+) -->.*?<!-- end -->",
        lambda match: GENERATED[match.group(1)](),
        markdown,
        flags=re.DOTALL,
    )
