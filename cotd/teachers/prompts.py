"""Prompts as data: templates and few-shot triplets in a YAML file, versioned by its hash."""

from __future__ import annotations

import hashlib
import json
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cotd.data.cleaning import replace_surrogates
from cotd.errors import CotdError, nearest
from cotd.tasks.base import Task

PLACEHOLDERS = {
    "score": {"text"},
    "explain": {"text", "label"},
    "explain_example": {"text", "label", "rationale"},
    "chain_of_thought": {"text"},
    "chain_of_thought_example": {"text", "label", "rationale"},
    "chain_of_thought_answer": {"label"},
}
# For teachers that write JSON. A file without them has the task's own; {answer} is the JSON of an example.
JSON_PLACEHOLDERS = {
    "explain_json": {"text", "label"},
    "explain_json_example": {"text", "label", "answer"},
    "chain_of_thought_json": {"text"},
    "chain_of_thought_json_example": {"text", "answer"},
}
OPTIONAL_PLACEHOLDERS = {"noun", "Noun", "examples", "choices"}


@dataclass(frozen=True)
class Prompts:
    """A task's prompts for one data set.

    Attributes:
        templates: name → template, the names being those of PLACEHOLDERS.
        label_words: label → the word the teacher writes for it.
        examples: few-shot triplets, each with `text`, `label`, `rationale`.
        noun: what a text is called, such as "movie review".
        hash: identifies file and noun; part of every annotation.
    """

    templates: dict[str, str]
    label_words: dict[str, str]
    examples: list[dict[str, str]]
    noun: str
    hash: str = field(default="")

    def render(self, name: str, text: str, label: str | None = None) -> str:
        """A prompt about a text, given a label if the template has one.

        Args:
            name: "score", "explain", "chain_of_thought", "explain_json" or "chain_of_thought_json".
        """
        shot = self.templates.get(f"{name}_example")
        examples = [self._example(shot, e, labelled=name == "chain_of_thought_json") for e in self.examples] if shot else []
        return self.templates[name].format(
            text=text,
            label=self.label_words[label] if label else None,
            noun=self.noun,
            Noun=self.noun[:1].upper() + self.noun[1:],
            examples="\n".join(examples),
            choices=" or ".join(self.label_words.values()),
        )

    def _example(self, template: str, example: dict[str, str], labelled: bool) -> str:
        """A few-shot example; its {answer} is the JSON that the teacher is to write, with a label if `labelled`."""
        values = example | {"label": self.label_words[example["label"]]}
        answer = {key: values[key] for key in (("rationale", "label") if labelled else ("rationale",))}
        return template.format(**values, answer=json.dumps(answer, ensure_ascii=False)) + "\n"

    def json_schema(self, labelled: bool) -> dict[str, Any]:
        """What a JSON completion must match: a rationale and, if `labelled`, one of the label words."""
        properties: dict[str, Any] = {"rationale": {"type": "string"}}
        if labelled:
            properties["label"] = {"type": "string", "enum": list(self.label_words.values())}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def parse_json(self, completion: str, task: Task | None = None) -> tuple[str | None, str]:
        """(label, rationale) of a JSON completion, which may have text around it; (None, "") if there is no such JSON.

        Without `task` the label is None.
        """
        try:
            plain = json.loads(completion[completion.find("{") : completion.rfind("}") + 1])
        except (ValueError, RecursionError):
            return None, ""
        if not isinstance(plain, dict) or not isinstance(plain.get("rationale"), str):
            return None, ""
        label = self._label_of(str(plain.get("label")), task) if task else None
        return label, replace_surrogates(plain["rationale"]).strip()

    def _label_of(self, word: str, task: Task) -> str | None:
        """The label that a teacher's word stands for."""
        by_word = {w.lower(): label for label, w in self.label_words.items()}
        word = word.strip().strip(".")
        return by_word.get(word.lower()) or task.find(word)

    def chain_of_thought_regex(self, max_characters: int = 400) -> str:
        """What a chain of thought must match: one line of rationale, then one of the label words."""
        before, _, after = self.templates["chain_of_thought_answer"].partition("{label}")
        choices = "|".join(re.escape(w) for w in self.label_words.values())
        return rf" [^\n]{{10,{max_characters}}}{re.escape(before)}({choices}){re.escape(after)}"

    def parse_chain_of_thought(self, completion: str, task: Task) -> tuple[str | None, str]:
        """(label, rationale) of a chain of thought; the label is None if it names none of the task's."""
        before, _, _ = self.templates["chain_of_thought_answer"].partition("{label}")
        rationale, separator, word = completion.rpartition(before)
        if not separator:
            return None, completion.strip()
        return self._label_of(word, task), rationale.strip()


def load_prompts(task: Task, noun: str, path: str | None = None) -> Prompts:
    """The task's own prompts, or those of a user's file.

    Raises:
        CotdError: all that is wrong with the file: missing or unknown keys, placeholders, labels.
    """
    file = Path(path).expanduser() if path else task.folder / "prompts.yaml"
    if not file.is_file():
        raise CotdError(f"no prompt file '{file}'. Check teacher.prompts.")
    source = file.read_text(encoding="utf-8")
    try:
        plain = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise CotdError(f"{file} is not valid YAML: {error}") from error
    if problems := prompt_problems(plain, task):
        raise CotdError(*(f"{file}: {p}" for p in problems))
    shipped = plain if path is None else yaml.safe_load((task.folder / "prompts.yaml").read_text(encoding="utf-8"))
    return Prompts(
        templates={name: plain[name] for name in PLACEHOLDERS} | {n: plain.get(n, shipped[n]) for n in JSON_PLACEHOLDERS},
        label_words=plain["label_words"],
        examples=plain["examples"],
        noun=noun,
        hash=hashlib.sha256(f"{noun}\n{source}".encode()).hexdigest()[:16],
    )


def prompt_problems(plain: Any, task: Task) -> list[str]:
    """Everything that is wrong with a prompt file's content."""
    if not isinstance(plain, dict):
        return ["not a mapping of keys to values"]
    required = [*PLACEHOLDERS, "label_words", "examples"]
    known = [*required, *JSON_PLACEHOLDERS]
    problems = [f"unknown key '{k}'.{nearest(k, known)}" for k in plain if k not in known]
    problems += [f"'{k}' is missing" for k in required if k not in plain]
    for name, needed in (PLACEHOLDERS | JSON_PLACEHOLDERS).items():
        try:
            present = {field for _, field, _, _ in string.Formatter().parse(str(plain.get(name, ""))) if field is not None}
        except ValueError as error:
            problems.append(f"'{name}': {error}. Write a literal brace twice: {{{{ or }}}}")
            continue
        if name in plain and not needed <= present:
            problems.append(f"'{name}' lacks {', '.join('{' + p + '}' for p in sorted(needed - present))}")
        problems += [f"'{name}' has an unknown {{{p}}}" for p in sorted(present - needed - OPTIONAL_PLACEHOLDERS)]
    words = plain.get("label_words")
    if words is not None and not (isinstance(words, dict) and all(isinstance(w, str) for w in words.values())):
        problems.append("label_words must map each label to a word in quotes")
    elif words is not None and set(words) != set(task.labels):
        problems.append(f"label_words must name exactly {', '.join(task.labels)}, not {', '.join(map(str, words))}")
    examples = plain.get("examples")
    if not isinstance(examples, list):
        return problems + ["examples must be a list of text, label and rationale"] * (examples is not None)
    for i, example in enumerate(examples):
        if not isinstance(example, dict) or set(example) != {"text", "label", "rationale"}:
            problems.append(f"examples[{i}] needs exactly text, label and rationale")
        elif example["label"] not in task.labels:
            problems.append(f"examples[{i}].label '{example['label']}' is not one of {', '.join(task.labels)}")
    return problems
