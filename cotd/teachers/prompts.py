"""Prompts as data: templates and few-shot examples in YAML files, whose format is told in `cotd/tasks/prompts.yaml`."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cotd.config.digest import digest
from cotd.data.cleaning import clean_text, replace_surrogates
from cotd.errors import CotdError, nearest
from cotd.tasks import registry
from cotd.tasks.base import Task
from cotd.tasks.find import find_answer
from cotd.tasks.multiple_choice import option_marks
from cotd.utils.model_output import json_objects, without_thoughts

GENERAL = Path(registry.__file__).with_name("prompts.yaml")
# Prompt → its parts, with the placeholders that each must have.
EVERYWHERE = {"noun", "Noun", "instruction", "label_name", "choices", "key"}
PARTS: dict[str, dict[str, set[str]]] = {
    "score": {"instruction": set(), "query": {"text"}},
    "explain": {"instruction": set(), "query": {"text", "label"}},
    "chain_of_thought": {"instruction": set(), "query": {"text"}, "answer": {"label"}},
    "explain_json": {"instruction": set(), "query": {"text", "label"}},
    "chain_of_thought_json": {"instruction": set(), "query": {"text"}},
}
NUMBER = r"-?\d{1,15}(\.\d{1,6})?"


@dataclass(frozen=True)
class Prompts:
    """A task's prompts for one data set.

    Attributes:
        templates: prompt → part → template, the names being those of PARTS.
        label_words: label → the word that the teacher writes for it; empty if the task has no fixed labels.
        examples: few-shot examples, each with `text`, `choices` (None but for multiple choice), `label` and `rationale`.
        noun: what a text is called, such as "movie review".
    """

    task: Task
    templates: dict[str, dict[str, str]]
    label_words: dict[str, str]
    examples: list[dict[str, Any]] = field(default_factory=list)
    noun: str = "text"

    @cached_property
    def hash(self) -> str:
        """Identifies all that prompts are made of; part of every annotation."""
        return digest([self.templates, self.label_words, self.examples, self._words(None), self.task.kind])

    # --- what the teacher reads ---------------------------------------------------------------------------------------

    def render(
        self,
        name: str,
        text: str,
        choices: Sequence[str] | None = None,
        label: str | None = None,
        escape: Callable[[str], str] = str,
    ) -> str:
        """A prompt about a text, given a label if its query has one.

        Args:
            name: one of PARTS. choices: the example's own options. label: an answer of the task.
            escape: applied to options; texts come escaped and cut.
        """
        parts, shown = self.templates[name], [] if name == "score" else self._examples(name)
        instruction = parts["instruction"].format(**self._words(choices))
        asked = self._key(text, choices) if shown else ""
        blocks = [
            instruction,
            *(block for key, block in shown if key != asked),
            self._query(name, text, choices, label, escape),
        ]
        return "\n\n".join(block for block in blocks if block)

    def scoring(
        self, text: str, choices: Sequence[str] | None = None, escape: Callable[[str], str] = str
    ) -> tuple[str, list[str]]:
        """A prompt, and the continuations whose probabilities score the answers, in the order of `task.options`.

        The options of multiple choice are scored by their letters, after a bracket: " (a" begins as " (b" does.
        """
        prompt = self.render("score", text, choices, escape=escape)
        if self.task.needs_choices:
            return f"{prompt} (", [mark.strip("()") for mark in option_marks(len(choices or ()))]
        return prompt, [f" {self.label_words[label]}" for label in self.task.labels]

    def _query(
        self,
        name: str,
        text: str,
        choices: Sequence[str] | None,
        label: str | None,
        escape: Callable[[str], str] = str,
    ) -> str:
        given = "" if label is None else self.word(label, choices)
        if given and choices:
            given = escape(f"{given} {label}")
        shown = self.task.render(text, [escape(option) for option in choices] if choices else None)
        values = self._words(choices) | {"text": shown, "label": given}
        return self.templates[name]["query"].format(**values)

    def _words(self, choices: Sequence[str] | None) -> dict[str, str]:
        task = self.task
        return {
            "noun": self.noun,
            "Noun": self.noun[:1].upper() + self.noun[1:],
            "instruction": task.instruction or f"Give the {task.label_name.lower()} of the {self.noun}.",
            "label_name": task.label_name,
            "choices": either(self._answers(choices)) or task.expected(),
            "key": self.answer_key,
        }

    def _answers(self, choices: Sequence[str] | None) -> list[str]:
        """What the teacher may write as an answer; empty if that is free."""
        return list(self.label_words.values()) or option_marks(len(choices or ()))

    def word(self, answer: str, choices: Sequence[str] | None = None) -> str:
        """What the teacher writes for an answer: a label word, an option's letter, a number."""
        return option_marks(len(choices))[list(choices).index(answer)] if choices else self.label_words.get(answer, answer)

    def _examples(self, name: str) -> list[tuple[str, str]]:
        """(what an example is known by, the example) of a prompt."""
        return self._shots.setdefault(name, [(self._key(e["text"], e["choices"]), self._shot(name, e)) for e in self.examples])

    @cached_property
    def _shots(self) -> dict[str, list[tuple[str, str]]]:
        return {}

    def _key(self, text: str, choices: Sequence[str] | None) -> str:
        return clean_text(self.task.render(text, choices)).casefold()

    def _shot(self, name: str, example: dict[str, Any]) -> str:
        text, choices, label, rationale = (example[key] for key in ("text", "choices", "label", "rationale"))
        query = self._query(name, text, choices, label)
        if name.endswith("_json"):
            word: Any = self.word(label, choices)
            if self.task.free_answers:
                word = float(word) if "." in word else int(word)
            answer = {"rationale": rationale} | ({self.answer_key: word} if name == "chain_of_thought_json" else {})
            return f"{query} {json.dumps(answer, ensure_ascii=False)}"
        return f"{query} {rationale}{self._answer(self.word(label, choices)) if name == 'chain_of_thought' else ''}"

    # --- what the teacher writes --------------------------------------------------------------------------------------

    @property
    def answer_key(self) -> str:
        """The key of the answer in JSON."""
        return "label" if self.task.labels else "answer"

    def json_schema(self, labelled: bool, choices: Sequence[str] | None = None) -> dict[str, Any]:
        """What a JSON completion must match: a rationale and, if `labelled`, an answer."""
        properties: dict[str, Any] = {"rationale": {"type": "string"}}
        if labelled:
            answers = self._answers(choices)
            properties[self.answer_key] = {"type": "string", "enum": answers} if answers else {"type": "number"}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def parse_json(
        self, completion: str, choices: Sequence[str] | None = None, labelled: bool = True
    ) -> tuple[str | None, str]:
        """(answer, rationale) of a JSON completion, which may have text around it; (None, "") if there is no such JSON.

        Of several objects the last one counts that has both. The answer is None unless it is `labelled`.
        """
        found: tuple[str | None, str] = (None, "")
        for plain in json_objects(without_thoughts(completion)):
            if not isinstance(plain.get("rationale"), str):
                continue
            answer = plain.get(self.answer_key) if labelled else None
            label = self._answer_of(answer, choices) if isinstance(answer, str) else self.task.parse(answer, choices)
            if label is not None or found[0] is None:
                found = label, replace_surrogates(plain["rationale"]).strip()
        return found

    def answers_first(self, completion: str) -> bool:
        """Whether a JSON completion has its answer before its rationale, as servers write it that sort keys."""
        keys = [
            list(plain)
            for plain in json_objects(without_thoughts(completion))
            if {"rationale", self.answer_key} <= plain.keys()
        ]
        return bool(keys) and keys[-1].index(self.answer_key) < keys[-1].index("rationale")

    def _answer(self, word: str) -> str:
        return self.templates["chain_of_thought"]["answer"].format(**self._words(None), label=word)

    def _answer_of(self, words: str, choices: Sequence[str] | None) -> str | None:
        """The answer that a teacher's words stand for."""
        return find_answer(words, self.task, choices, {word.casefold(): label for label, word in self.label_words.items()})

    def chain_of_thought_regex(self, choices: Sequence[str] | None = None, max_characters: int = 400) -> str:
        """What a chain of thought must match: one line of rationale, then an answer."""
        answers = "|".join(map(re.escape, self._answers(choices))) or NUMBER
        return rf"[^\n]{{10,{max_characters}}}{re.escape(self._answer(''))}({answers})"

    def parse_chain_of_thought(self, completion: str, choices: Sequence[str] | None = None) -> tuple[str | None, str]:
        """(answer, rationale) of a chain of thought; the answer is None if it has none that the example can have."""
        completion = without_thoughts(completion)
        rationale, separator, words = completion.rpartition(self._answer(""))
        if not separator:
            return None, completion.strip()
        return self._answer_of(words, choices), rationale.strip()


def either(words: Sequence[str]) -> str:
    """ "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def load_prompts(task: Task, noun: str, path: str | None = None) -> Prompts:
    """The task's prompts, or those of a user's file: what a file leaves out is as in the next more general one.

    Raises:
        CotdError: all that is wrong with the file: unknown keys, placeholders, labels, examples.
    """
    files = [GENERAL]
    if registry.is_built_in(task) and (own := task.folder / "prompts.yaml").is_file():
        files.append(own)
    if path:
        files.append(Path(path).expanduser())
    merged: dict[str, Any] = {}
    for file in files:
        plain = read_prompts(file, task)
        merged |= {key: merged.get(key, {}) | value if key in PARTS else value for key, value in plain.items()}
    words = {str(label): word for label, word in merged["label_words"].items()}
    examples = [
        {
            "text": e["text"],
            "choices": e.get("choices"),
            "label": task.parse(e["label"], e.get("choices")),
            "rationale": e["rationale"],
        }
        for e in merged["examples"]
    ]
    templates = {name: merged[name] for name in PARTS}
    return Prompts(task, templates, words or {label: task.verbalize(label) for label in task.labels}, examples, noun)


def read_prompts(file: Path, task: Task) -> dict[str, Any]:
    """The content of a prompt file.

    Raises:
        CotdError: all that is wrong with it.
    """
    if not file.is_file():
        raise CotdError(f"no prompt file '{file}'. Check teacher.prompts.")
    try:
        plain = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)  # ten times as fast as in Python
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CotdError(f"{file} is not valid YAML: {error}") from error
    if problems := prompt_problems(plain, task):
        raise CotdError(*(f"{file}: {p}" for p in problems))
    return plain


def prompt_problems(plain: Any, task: Task) -> list[str]:
    """Everything that is wrong with a prompt file's content."""
    if not isinstance(plain, dict):
        return ["not a mapping of keys to values"]
    known = [*PARTS, "label_words", "examples"]
    problems = [f"unknown key '{k}'.{nearest(k, known)}" for k in plain if k not in known]
    for name, parts in PARTS.items():
        content = plain.get(name, {})
        if not isinstance(content, dict):
            problems.append(f"'{name}' must have keys: {', '.join(parts)}")
            continue
        problems += [f"unknown key '{name}.{k}'.{nearest(str(k), parts)}" for k in content if k not in parts]
        for part in parts.keys() & content.keys():
            problems += [f"'{name}.{part}' {problem}" for problem in template_problems(content[part], parts[part])]
    answer = plain["chain_of_thought"].get("answer") if isinstance(plain.get("chain_of_thought"), dict) else None
    if isinstance(answer, str) and "{label}" in answer and not (answer.endswith("{label}") and answer != "{label}"):
        problems.append("'chain_of_thought.answer' must end with {label}, after some words that a rationale does not have")
    words = plain.get("label_words") or {}
    if not (isinstance(words, dict) and all(isinstance(w, str) for w in words.values())):
        problems.append("label_words must map each label to a word in quotes")
    elif words and not task.labels:
        problems.append(f"label_words are for classification, and the task '{task.name}' is {task.kind}: leave them out")
    elif words and set(map(str, words)) != set(task.labels):
        problems.append(f"label_words must name exactly {', '.join(task.labels)}, not {', '.join(map(str, words))}")
    elif len({w.casefold() for w in words.values()}) < len(words):
        problems.append("label_words: two labels have the same word")
    examples = plain.get("examples", [])
    if not isinstance(examples, list):
        return [*problems, "examples must be a list of text, label and rationale"]
    return problems + [
        problem for i, example in enumerate(examples) for problem in example_problems(f"examples[{i}]", example, task)
    ]


def template_problems(template: Any, needed: set[str]) -> list[str]:
    """What is wrong with one part of a prompt."""
    if not isinstance(template, str):
        return ["must be text"]
    try:
        present = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        return [f"cannot be read: {error}. Write a literal brace twice: {{{{ or }}}}"]
    problems = [f"lacks {', '.join('{' + p + '}' for p in sorted(needed - present))}"] if needed - present else []
    return problems + [f"has an unknown {{{p}}}" for p in sorted(present - needed - EVERYWHERE)]


def example_problems(where: str, example: Any, task: Task) -> list[str]:
    """What is wrong with one few-shot example."""
    keys = ["text", *(["choices"] if task.needs_choices else []), "label", "rationale"]
    if not isinstance(example, dict) or set(example) != set(keys):
        return [f"{where} needs exactly {either(keys).replace(' or ', ' and ')}"]
    choices = example.get("choices")
    if task.needs_choices and not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) for c in choices)):
        return [f"{where}.choices must be a list of at least two options in quotes"]
    problems = [f"{where}.{key} must be text" for key in ("text", "rationale") if not isinstance(example[key], str)]
    if task.parse(example["label"], choices) is None:
        problems.append(f"{where}.label '{example['label']}' is not {task.expected(choices)}")
    return problems
