"""How a teacher is asked: score, then explain (weak teachers), or few-shot chain of thought (strong ones).

A strategy sees neither engine nor store: it is given `ask`, which answers requests, and returns the teacher's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cotd.annotations import annotation_row, annotation_table
from cotd.calibration import calibrate
from cotd.completions import Request
from cotd.config import TeacherConfig
from cotd.errors import CotdError
from cotd.prompts import Prompts
from cotd.reviews import Reviews
from cotd.task import Task

Completion = dict[str, Any]
Ask = Callable[[Sequence[Request], str], dict[str, Completion]]
Labels = dict[str, tuple[str, float | None]]  # review id → (label, its probability where the teacher gives one)


@dataclass(frozen=True)
class Teacher:
    """A teacher as its requests name it, with what a strategy needs of its tokenizer.

    Attributes:
        name: the model as configured. revision: which weights, as far as known.
        first_token: word → id of its first token, as it follows a prompt.
        fit: cuts a text to a number of tokens.
    """

    name: str
    revision: str
    first_token: Callable[[str], int]
    fit: Callable[[str, int], str]
    config: TeacherConfig

    def request(self, prompt: str, **sampling: Any) -> Request:
        return Request(self.name, self.revision, prompt, sampling)


@dataclass
class TeacherOutput:
    """What a strategy returns.

    Attributes:
        annotations: the Annotation table of the training reviews.
        test: the teacher's own labels of the test reviews: review_id, gold, predicted, label_probability; `predicted`
            is None where it gave no answer in the label set.
        calibration: what was fitted on what, or None.
    """

    annotations: pd.DataFrame
    test: pd.DataFrame
    calibration: dict[str, Any] | None


def score_then_explain(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Scores the label words, calibrates the scores on validation reviews, then asks for a rationale given the label.

    A rationale given the teacher's own label and one given an equal gold label are the same request, and paid once.
    """
    train, test = reviews.split("train"), reviews.split("test")
    held_out = calibration_reviews(teacher.config, reviews)
    texts = fitted_texts(teacher, pd.concat([train, test, held_out]))

    scoring = {i: score_request(teacher, task, prompts, text) for i, text in texts.items()}
    # The calibration rows go first, so that a run that is stopped early has them.
    scored = ask([scoring[i] for i in [*held_out["id"], *train["id"], *test["id"]]], "label scores")
    scores = {i: label_score(scored[r.key], task) for i, r in scoring.items() if answered(scored, r)}

    known = held_out[held_out["id"].isin(list(scores))]
    if known.empty:
        raise CotdError("the teacher scored none of the validation reviews, so its labels cannot be calibrated.")
    gold = (known["label"] == task.positive).to_numpy() if teacher.config.calibration.method == "platt" else None
    settings = teacher.config.calibration
    if gold is not None and len(set(gold)) < 2:
        raise CotdError("the teacher scored validation reviews of one label only, so its labels cannot be calibrated.")
    calibration = calibrate(settings.method, np.array([scores[i] for i in known["id"]]), gold, settings.prior)
    labels = {i: calibrated_label(task, float(calibration.probability(np.array(s)))) for i, s in scores.items()}

    wanted = explain_wanted(teacher, train, {i: label for i, (label, _) in labels.items()})
    explaining = {
        (i, sample, by_gold): explain_request(teacher, prompts, texts[i], label, sample)
        for i, label, by_gold in wanted
        for sample in range(teacher.config.samples)
    }
    written = ask(list(explaining.values()), "rationales")
    label_of = {(i, by_gold): label for i, label, by_gold in wanted}
    rows = []
    for (i, sample, by_gold), request in explaining.items():
        answer = written.get(request.key)
        label, probability = label_of[i, by_gold], None if by_gold else labels[i][1]
        text = answer["text"] or "" if answer else ""
        extra = 0 if by_gold or sample else scored[scoring[i].key]["prompt_tokens"]
        origin = origin_of(teacher, prompts)
        rows.append(annotation_row(i, sample, by_gold, label, probability, text, answer, origin, extra))
    for i in train["id"]:
        if i not in scores:
            failure = scored.get(scoring[i].key)
            rows.append(annotation_row(i, 0, False, None, None, "", failure, origin_of(teacher, prompts)))
    predicted: Labels = {i: labels[i] for i in test["id"] if i in labels}
    return TeacherOutput(annotation_table(rows), test_table(test, predicted), calibration.to_dict())


def chain_of_thought(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Few-shot chain of thought with structured output; for gold-conditioned rationales, `explain` given gold.

    The teacher's labels are taken as they come: `label_probability` is the share of samples that agree.
    """
    train, test = reviews.split("train"), reviews.split("test")
    texts = fitted_texts(teacher, pd.concat([train, test]))
    samples = range(teacher.config.samples)
    thinking = {(i, s): think_request(teacher, prompts, texts[i], s) for i in train["id"] for s in samples}
    benchmark = {i: think_request(teacher, prompts, texts[i], 0, greedy=True) for i in test["id"]}
    given = dict(zip(train["id"], train["label"], strict=True)) if teacher.config.gold_conditioned else {}
    explaining = {
        (i, s): explain_request(teacher, prompts, texts[i], label, s, structured=True)
        for i, label in given.items()
        if label is not None
        for s in samples
    }
    answers = ask([*thinking.values(), *explaining.values(), *benchmark.values()], "chains of thought")

    origin, rows = origin_of(teacher, prompts), []
    for i in train["id"]:
        found = [answers.get(thinking[i, s].key) for s in samples]
        parsed = [prompts.parse_chain_of_thought(a["text"], task) if a and not a.get("error") else (None, "") for a in found]
        votes = [label for label, _ in parsed if label]
        for s, (answer, (label, rationale)) in enumerate(zip(found, parsed, strict=True)):
            share = votes.count(label) / len(votes) if label else None
            error = None if label or not answer or answer.get("error") else "no label of the task in the answer"
            rows.append(annotation_row(i, s, False, label, share, rationale, answer, origin, error=error))
    for (i, s), request in explaining.items():
        answer = answers.get(request.key)
        rows.append(annotation_row(i, s, True, given[i], None, answer["text"] or "" if answer else "", answer, origin))
    predicted: Labels = {}
    for i, request in benchmark.items():
        if answered(answers, request):
            label, _ = prompts.parse_chain_of_thought(answers[request.key]["text"], task)
            if label:
                predicted[i] = (label, None)
    return TeacherOutput(annotation_table(rows), test_table(test, predicted), None)


STRATEGIES = {"score_then_explain": score_then_explain, "chain_of_thought": chain_of_thought}


def calibration_reviews(config: TeacherConfig, reviews: Reviews) -> pd.DataFrame:
    """The validation reviews that the calibration may see.

    Raises:
        CotdError: Platt scaling was asked for and there is no gold of both labels.
    """
    held_out = reviews.split("validation")
    if config.calibration.method == "platt":
        held_out = held_out[held_out["label"].notna()]
        if held_out.head(config.calibration.rows)["label"].nunique() < 2:
            raise CotdError(
                "teacher.calibration.method platt needs validation reviews with gold labels of both kinds. "
                "Use method: prior, which needs none, or give labels."
            )
    return held_out.head(config.calibration.rows)


def fitted_texts(teacher: Teacher, reviews: pd.DataFrame) -> dict[str, str]:
    """review id → its text, cut to what leaves the prompt and the answer room in the teacher's context."""
    limit = teacher.config.max_review_tokens
    return {i: teacher.fit(text, limit) for i, text in zip(reviews["id"], reviews["text"], strict=True)}


def explain_wanted(teacher: Teacher, train: pd.DataFrame, own: dict[str, str]) -> list[tuple[str, str, bool]]:
    """(review id, label to explain, whether it is gold) for the teacher's own labels and, if configured, for gold."""
    wanted = [(i, own[i], False) for i in train["id"] if i in own]
    if teacher.config.gold_conditioned:
        wanted += [(i, gold, True) for i, gold in zip(train["id"], train["label"], strict=True) if gold is not None]
    return wanted


def score_request(teacher: Teacher, task: Task, prompts: Prompts, text: str) -> Request:
    tokens = [teacher.first_token(" " + prompts.label_words[label]) for label in task.labels]
    if len(set(tokens)) < len(tokens):
        raise CotdError(
            f"the teacher's tokenizer begins two of the label words {', '.join(prompts.label_words.values())} with the same "
            "token, so that one token cannot score them. Name other label_words (teacher.prompts), or use strategy: chain_of_thought."
        )
    return teacher.request(prompts.score(text), max_tokens=1, temperature=0.0, allowed_token_ids=tokens, logprobs=len(tokens))


def explain_request(
    teacher: Teacher, prompts: Prompts, text: str, label: str, sample: int, structured: bool = False
) -> Request:
    extra: dict[str, Any] = {"structured_outputs": {"regex": r" [^\n]{10,400}"}} if structured else {"stop": ["\n"]}
    return teacher.request(prompts.explain(text, label), **writing(teacher, sample), **extra)


def think_request(teacher: Teacher, prompts: Prompts, text: str, sample: int, greedy: bool = False) -> Request:
    sampling = writing(teacher, sample) | ({"temperature": 0.0} if greedy else {})
    regex = prompts.chain_of_thought_regex()
    return teacher.request(prompts.chain_of_thought(text), **sampling, structured_outputs={"regex": regex})


def writing(teacher: Teacher, sample: int) -> dict[str, Any]:
    """Sampling parameters of a written answer; each sample has a seed of its own."""
    config = teacher.config
    return {
        "max_tokens": config.max_rationale_tokens, "temperature": config.temperature, "seed": config.seed + sample, "logprobs": 1
    }  # fmt: skip


def label_score(completion: Completion, task: Task) -> float:
    """log P(positive word) - log P(the other word) of a scoring request's answer."""
    positive = task.labels.index(task.positive)
    logprobs = completion["label_logprobs"]
    return float(logprobs[positive] - logprobs[1 - positive])


def calibrated_label(task: Task, p_positive: float) -> tuple[str, float]:
    """(label, its probability) for p(positive)."""
    other = next(label for label in task.labels if label != task.positive)
    return (task.positive, p_positive) if p_positive >= 0.5 else (other, 1 - p_positive)


def origin_of(teacher: Teacher, prompts: Prompts) -> dict[str, str]:
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": prompts.hash}


def answered(found: dict[str, Completion], request: Request) -> bool:
    """Whether a request has an answer that is not a failure."""
    return request.key in found and not found[request.key].get("error")


def test_table(test: pd.DataFrame, predicted: Labels) -> pd.DataFrame:
    """The teacher's own labels beside gold; a missing answer stays None and counts as wrong."""
    nothing = (None, None)
    table = pd.DataFrame({"review_id": test["id"].to_list(), "gold": test["label"].to_list()})
    table["predicted"] = pd.Series([predicted.get(i, nothing)[0] for i in test["id"]], dtype=object)
    table["label_probability"] = [predicted.get(i, nothing)[1] for i in test["id"]]
    return table
