"""Finds the answer in what a language model wrote, whatever it put around it; what it did not say plainly is not guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from cotd.tasks.base import PUNCTUATION, Task, cell_text
from cotd.utils.model_output import json_objects, without_thoughts

# What models call an answer, besides the task's own word for it.
NAMES = ("answer", "label", "class", "category", "classification", "prediction", "verdict", "choice", "option", "output")
_ADJECTIVES = r"(?:(?:the|my|its|overall|final|predicted|correct|right|best)\s+)*"
_MARKUP = r"[\s*_`\"'#>]*"
# What may follow an answer: "(0.93)", "[high confidence]", ", 93 %", "with probability 0.9".
_NOTE = re.compile(r"\s*[,;:–-]?\s*[(\[][^()\[\]]*[)\]][\s.]*$")
_SURE = re.compile(
    r"[\s,;:–-]*(?:(?:with|at)\s+)?(?:(?:confidence|probability|p|score)\b[\s:=of]*)?\d*\.?\d+\s*%?"
    r"(?:\s*(?:confidence|confident|probability|sure|certainty|certain))?[\s.]*$",
    re.IGNORECASE,
)
# What an answer stands in: <answer>…</answer>, TeX's \\boxed{…}; and what stands before it in Markdown.
_WRAPPED = re.compile(
    r"<(answer|label|output|result)>\s*(.*?)\s*</\1>|\\boxed\{(?:\\text\{)?([^{}]*)\}", re.IGNORECASE | re.DOTALL
)
_MARK = re.compile(r"^(?:[\s#>*•=→⇒-]+|\d{1,2}[.)]\s+)+(?=[^\W\d])")
# Pictures beside an answer, but those that may deny it.
_PICTURES = re.compile(r"(?![❌✖✗✘⛔🚫])[\u2600-\u27bf\u2b50-\u2b55\ufe0f\u200d\U0001f300-\U0001faff]")
# One answer denied for another: "not negative but positive".
_RATHER = re.compile(r"not\s+\S.{0,40}?,?\s+but\s+(?:rather\s+)?(.*)$", re.IGNORECASE)
# An answer before what it is explained by: "Positive. The reviewer enjoyed all of it." Not the first of several answers.
_FIRST = re.compile(r"(.{1,60}?)(?:[.:;]\s|\s[-–—]\s|\n)\s*(?:\S+\s+){3}\S")
_HEDGES = r"(?:(?:so|thus|therefore|hence|overall|clearly|i (?:think|believe|would say)(?: that)?)\b[,:]?\s+)"
_ADVERBS = r"(?:(?:clearly|definitely|certainly|overall|generally|mostly|largely|mainly|overwhelmingly|strongly)\s+)?"
_REASON = re.compile(r",?\s+(?:because|since|as|due to)\b.*$", re.IGNORECASE)


def find_answer(
    text: str, task: Task, choices: Sequence[str] | None = None, words: Mapping[str, str] | None = None
) -> str | None:
    """The answer that a model's words give, or None: "**Positive**", "Label: positive.", "Positive (0.93)", '{"label": "positive"}',
    "<think>It is praise.</think> positive", "Positive. The reviewer enjoyed it.", "So the answer is (b).".

    Args:
        choices: the example's own options. words: a word in small letters → the label that it stands for, besides the task's.
    """
    for form in answer_forms(text, task.label_name, free=task.free_answers):
        label = (words or {}).get(form.strip(PUNCTUATION).casefold())
        if (answer := label or task.find(form, choices)) is not None:
            return answer
    return None


def answer_forms(text: str, name: str = "label", free: bool = False) -> Iterator[str]:
    """The parts of a text that may be its answer, the likeliest first.

    Args:
        name: the task's word for an answer. free: answers are numbers, of which the last one in a part would be taken.
    """
    text = without_thoughts(text).strip().replace("：", ":")
    names = "|".join(re.escape(word) for word in sorted({*NAMES, name.casefold()}))
    for content in reversed(json_objects(text)):
        for key, value in content.items():
            if re.fullmatch(f"{_ADJECTIVES}(?:{names})", key.replace("_", " ")) and (word := cell_text(value)):
                yield word
    wrapped = [match[2] or match[3] or "" for match in _WRAPPED.finditer(text)]
    yield from reversed(wrapped)
    if not free:
        yield text.split("\n\n")[0]  # what follows may be a further example that a model made up
    marked = re.findall(rf"(?im)^{_MARKUP}{_ADJECTIVES}(?:{names}){_MARKUP}(?:[:=]|\n){_MARKUP}(\S.*)$", text)
    parts = [text, *marked[-1:]]
    for part in reversed(parts) if free else parts:
        without_note = _NOTE.sub("", part)
        shorter = [without_note] if free else [without_note, _SURE.sub("", part)]
        yield from [*shorter, part] if free else [part, *shorter]
    if (first := _FIRST.match(text)) and not free:
        yield first[1]
    sentence = re.split(r"(?<=[.!?])\s+" if free else r"(?<=[.!?;])\s+", text)[-1]
    subject = rf"(?:{_ADJECTIVES}(?:{names})(?:\s+of\s+(?:the|this)\s+\w+)?|(?:the|this)\s+\w+|this|it)"
    if said := re.match(rf"(?i){_HEDGES}*{subject}\s+(?:is|was|would be)\s*:?\s+{_ADVERBS}(.*)$", sentence):
        yield from (said[1], _NOTE.sub("", said[1]), _REASON.sub("", said[1]))
        if (rather := _RATHER.match(said[1])) and not free:
            yield rather[1]
    elif (hedged := re.match(rf"(?i){_HEDGES}+(.*)$", sentence)) and not free:
        yield hedged[1]
    if not free and (plain := _MARK.sub("", _PICTURES.sub("", text).strip())) != text:
        yield plain
