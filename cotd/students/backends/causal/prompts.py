"""What a causal student reads before it writes: a text in the words that ask for its answer, or for a rationale."""

from __future__ import annotations

from typing import Any

from cotd.students.backends.base import ASK_LABEL, TARGET_KINDS
from cotd.tasks.base import Task

RATIONALE_NAME = "Rationale"  # as in the teacher's prompts
_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"  # where the text is to stand in a chat template


class Frame:
    """The tokens around a text.

    Attributes:
        before: those before every text, whatever is asked for.
        after: target kind → those between text and target.
    """

    def __init__(self, tokenizer: Any, task: Task, chat: bool):
        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

        parts = {kind: chat_parts(tokenizer, task, kind) if chat else plain_parts(task, kind) for kind in TARGET_KINDS}
        begin = [] if chat else leading_tokens(tokenizer)  # a template has its own
        self.before = [*begin, *ids(parts["label"][0])]
        self.after = {kind: ids(after) for kind, (_, after) in parts.items()}

    @property
    def tokens(self) -> int:
        """The most tokens that stand around a text."""
        return len(self.before) + max(map(len, self.after.values()))


def plain_parts(task: Task, kind: str) -> tuple[str, str]:
    """What stands before and after a text: "Review:", "\\nSentiment:"."""
    return task.text_mark, f"\n{task.label_name if kind in ASK_LABEL else RATIONALE_NAME}:"


def chat_parts(tokenizer: Any, task: Task, kind: str) -> tuple[str, str]:
    """What stands before and after a text in a user's message, up to where the answer begins."""
    question = task.instruction or f"Give the {task.label_name.lower()} of the {task.noun}."
    ask = question if kind in ASK_LABEL else f"{question} Explain why."
    message = {"role": "user", "content": f"{task.text_mark}{_TEXT}\n\n{ask}"}
    # Thinking is turned off in models that have it: a student writes what it was trained to write.
    rendered = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    before, _, after = rendered.partition(_TEXT)
    return before, after


def leading_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before every text."""
    with_special, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    return with_special[: len(with_special) - len(plain)] if with_special[-len(plain) :] == plain else with_special[:0]
