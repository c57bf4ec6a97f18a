"""How a teacher is asked: score, then explain (weak teachers), or few-shot chain of thought (strong ones).

A strategy sees neither engine nor store: it is given `ask`, which answers requests, and returns the teacher's output.
Requests are rendered when they are needed and rows kept as Arrow columns, so that memory is that of the tables.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cotd.annotations import AnnotationRows, annotation_row, tidy_rationale
from cotd.calibration import Calibration, calibrate
from cotd.completions import Request
from cotd.config import TeacherConfig
from cotd.errors import CotdError
from cotd.memory import release_memory
from cotd.prompts import Prompts
from cotd.reviews import Reviews
from cotd.task import Task

Completion = dict[str, Any]
# What a strategy wants back with the answer to a request; the review's id is its first.
Tag = tuple[Any, ...]
Tagged = tuple[Tag, Request]
# Whether an answer that came is one that can be used.
Usable = Callable[[Tag, Completion], bool]
# Answers requests, each once, in any order, failures with their `error`. It may go through them more than once, so it
# is given a function that begins anew; a request is rendered when its turn comes. Also given: what they are, in words,
# and which answers can be used: the others may be asked for again, as `cotd.retries.another_try`.
Ask = Callable[[Callable[[], Iterable[Tagged]], str, Usable], Iterator[tuple[Tag, Completion]]]
Labels = dict[str, tuple[str, float | None]]  # review id → (label, its probability where the teacher gives one)
# The `finish_reason` of a request that was not made, because the budget was reached.
NOT_ASKED = "not asked"
# A JSON answer's quotes, braces and keys, and its label.
JSON_TOKENS = 24
# How most chat formats begin a special token, <|im_end|> say, in case there is no tokenizer to ask.
_TURN = re.compile(r"<\|(?=\w+\|>)")


@dataclass(frozen=True)
class Teacher:
    """A teacher as its requests name it, with what a strategy needs of its tokenizer.

    Attributes:
        name: the model as configured. revision: which weights, as far as known, and how they are used.
        first_token: word → id of its first token, as it follows a prompt; None where there is no tokenizer.
        fit: cuts a text to a number of tokens.
        count: the tokens of a text, or an estimate.
        special: its special tokens, as they are written.
        cut: review id → how many characters of its text, without special tokens, the teacher is shown, of those that were
            looked at.
        commit: of a hub model, for the engine to load.
    """

    name: str
    revision: str
    first_token: Callable[[str], int] | None
    fit: Callable[[str, int], str]
    config: TeacherConfig
    count: Callable[[str], int] = len
    special: tuple[str, ...] = ()
    cut: dict[str, int] = field(default_factory=dict)
    commit: str | None = None

    def request(self, prompt: str, **sampling: Any) -> Request:
        return Request(self.name, self.revision, prompt, sampling)

    def shown(self, reviews: pd.DataFrame) -> Iterator[tuple[str, str]]:
        """(id, text) of each review, cut to what leaves the prompt and the answer room in the teacher's context."""
        for i, whole in zip(reviews["id"], reviews["text"], strict=True):
            text = self.unspecial(whole)  # before it is cut: what was one token is several now
            if i not in self.cut:
                self.cut[i] = len(self.fit(text, self.config.max_review_tokens))
            yield i, text[: self.cut[i]]

    def unspecial(self, text: str) -> str:
        """A text in which nothing is a special token to the teacher (the end of the prompt, another speaker's turn)."""
        text = _TURN.sub("< |", text)
        for token in self.special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @property
    def answers_json(self) -> bool:
        """Whether written answers are JSON: what an endpoint can be held to, where it knows no patterns."""
        api = self.config.api
        return api is not None and api.server == "openai" and self.config.strategy == "chain_of_thought"


@dataclass
class TeacherOutput:
    """What a strategy returns.

    Attributes:
        annotations: the Annotation table of the training reviews.
        test: the teacher's own labels of the test reviews: review_id, gold, predicted, label_probability; `predicted`
            is None where it gave no answer in the label set. Reviews that it was not asked for are left out.
        calibration: what was fitted on what, or None.
        rationales: validation or test review id → the teacher's own rationale, "" where it gave none; of the reviews that
            it was asked about, which takes `held_out_rationales`.
    """

    annotations: pd.DataFrame
    test: pd.DataFrame
    calibration: dict[str, Any] | None
    rationales: dict[str, str] = field(default_factory=dict)


def score_then_explain(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Scores the label words, calibrates the scores on validation reviews, then asks for a rationale given the label.

    A rationale given the teacher's own label and one given an equal gold label are the same request, and paid once.
    """
    train, test = reviews.split("train"), reviews.split("test")
    held_out, explained = calibration_reviews(teacher.config, reviews), explained_reviews(teacher.config, reviews)
    parts = scored_reviews(held_out, test, train, explained)
    # A place in `parts` for each review: dictionaries by id would take ten times as much.
    scores, prompt_tokens = np.full(sum(map(len, parts)), np.nan), np.zeros(sum(map(len, parts)), dtype=np.int32)
    first, extra = len(parts[0]), len(parts[0]) + len(train)
    place = {i: n for n, i in enumerate(parts[0]["id"])} | {i: n for n, i in enumerate(parts[2]["id"], extra)}
    failures: dict[str, Completion] = {}
    for (i, n), answer in ask(lambda: score_requests(teacher, task, prompts, parts), "label scores", lambda tag, answer: True):
        if answer["error"]:
            failures[i] = answer
        else:
            scores[n], prompt_tokens[n] = label_score(answer, task), answer["prompt_tokens"]
    release_memory()

    scored = ~np.isnan(scores)
    # The calibration reviews are the first of the first part.
    calibration = fitted_calibration(teacher.config, task, held_out, scores[: len(held_out)])

    def own(n: int) -> tuple[str, float]:
        return calibrated_label(task, calibration, scores[n])

    def explaining() -> Iterator[Tagged]:
        for n, ((i, text), gold) in enumerate(zip(teacher.shown(train), wanted_gold(teacher, train), strict=True), first):
            label = own(n)[0] if scored[n] else None
            for sample in range(teacher.config.samples):
                for wanted in dict.fromkeys(w for w in (label, gold) if w):
                    kinds = tuple(by_gold for by_gold in (False, True) if wanted == (gold if by_gold else label))
                    yield (i, n, sample, wanted, kinds), explain_request(teacher, prompts, text, wanted, sample)
        for i, text in teacher.shown(explained):
            if scored[n := place[i]]:
                yield (i, n, 0, own(n)[0], ()), explain_request(teacher, prompts, text, own(n)[0], 0)

    rows, origin = AnnotationRows(), origin_of(teacher, prompts)
    rationales = {i: "" for i in explained["id"] if i in failures and failures[i]["finish_reason"] != NOT_ASKED}
    for (i, n, sample, label, kinds), answer in ask(
        explaining, "rationales", lambda tag, answer: explains(teacher, prompts, answer)
    ):
        if not kinds and answer["finish_reason"] != NOT_ASKED:
            rationales[i] = usable_rationale(written_rationale(teacher, prompts, answer), answer)
        for by_gold in kinds:
            given = None if by_gold else own(n)[1]
            scoring = 0 if by_gold or sample else int(prompt_tokens[n])
            rationale = written_rationale(teacher, prompts, answer)
            rows.add(annotation_row(i, sample, by_gold, label, given, rationale, answer, origin, scoring))
    for n, i in enumerate(train["id"], first):
        if not scored[n]:
            rows.add(annotation_row(i, 0, False, None, None, "", failures.get(i), origin))
    predicted: Labels = {i: own(place[i]) for i in test["id"] if scored[place[i]]}
    unasked = {i for i, failure in failures.items() if failure["finish_reason"] == NOT_ASKED}
    return TeacherOutput(rows.table(), test_table(test, predicted, unasked), calibration.to_dict(), rationales)


def chain_of_thought(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Few-shot chain of thought with structured output; for gold-conditioned rationales, `explain` given gold.

    The teacher's labels are taken as they come: `label_probability` is the share of samples that agree.
    """
    train, test = reviews.split("train"), reviews.split("test")
    samples = range(teacher.config.samples)
    explained = explained_reviews(teacher.config, reviews)

    def thinking() -> Iterator[Tagged]:
        # The test reviews go first: what a run that reaches its budget has made is then measured.
        for i, text in teacher.shown(pd.concat([test, explained]).drop_duplicates("id")):
            yield (i, "test", 0), think_request(teacher, prompts, text, 0, greedy=True)
        gold_of = gold_labels(teacher, train)
        for i, text in teacher.shown(train):
            for s in samples:
                yield (i, "think", s), think_request(teacher, prompts, text, s)
            for s in samples if i in gold_of else ():
                yield (i, "explain", s), explain_request(teacher, prompts, text, gold_of[i], s, structured=True)

    def usable(tag: Tag, answer: Completion) -> bool:
        if tag[1] == "explain":
            return explains(teacher, prompts, answer)
        return thinks(teacher, prompts, task, answer, label_only=tag[1] == "test")

    gold_of, origin, rows = gold_labels(teacher, train), origin_of(teacher, prompts), AnnotationRows()
    predicted: Labels = {}
    unasked: set[str] = set()
    wanted, rationales = set(explained["id"]), dict[str, str]()
    waiting: dict[str, list[tuple[int, Completion]]] = {}  # samples of reviews that lack some yet
    for (i, kind, s), answer in ask(thinking, "chains of thought", usable):
        if kind == "explain":
            rationale = written_rationale(teacher, prompts, answer)
            rows.add(annotation_row(i, s, True, gold_of[i], None, rationale, answer, origin))
        elif kind == "test":
            label, rationale = parsed(teacher, prompts, task, answer)
            if label:
                predicted[i] = (label, None)
            elif answer["finish_reason"] == NOT_ASKED:
                unasked.add(i)
                continue
            if i in wanted:
                rationales[i] = usable_rationale(rationale, answer)
        else:
            waiting.setdefault(i, []).append((s, answer))
            if len(waiting[i]) == len(samples):
                for row in sampled_rows(teacher, prompts, task, i, waiting.pop(i), origin):
                    rows.add(row)
    return TeacherOutput(rows.table(), test_table(test, predicted, unasked), None, rationales)


def sampled_rows(
    teacher: Teacher, prompts: Prompts, task: Task, review_id: str, found: list[tuple[int, Completion]], origin: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The annotation rows of one review's samples, each with the share of samples that have its label."""
    answers = [(s, answer, *parsed(teacher, prompts, task, answer)) for s, answer in found]
    votes = [label for _, _, label, _ in answers if label]
    for s, answer, label, rationale in answers:
        share = votes.count(label) / len(votes) if label else None
        error = None if label or answer["error"] else "no label of the task in the answer"
        yield annotation_row(review_id, s, False, label, share, rationale, answer, origin, error=error)


def parsed(teacher: Teacher, prompts: Prompts, task: Task, answer: Completion) -> tuple[str | None, str]:
    """(label, rationale) of a chain of thought; (None, "") of a failed one."""
    if answer["error"]:
        return None, ""
    parse = prompts.parse_json if teacher.answers_json else prompts.parse_chain_of_thought
    return parse(answer["text"], task)


def written_rationale(teacher: Teacher, prompts: Prompts, answer: Completion) -> str:
    """The rationale of an answer to `explain_request`."""
    if answer["error"]:
        return ""
    text = answer["text"] or ""
    return prompts.parse_json(text)[1] if teacher.answers_json else text


def usable_rationale(rationale: str, answer: Completion) -> str:
    """A rationale that a student may read, or "" where an annotation of it would be quarantined."""
    if answer["error"]:
        return ""
    rationale, problem = tidy_rationale(rationale, answer["finish_reason"])
    return "" if problem else rationale


def explains(teacher: Teacher, prompts: Prompts, answer: Completion) -> bool:
    """Whether an answer to `explain_request` is a rationale that students may learn from."""
    return bool(usable_rationale(written_rationale(teacher, prompts, answer), answer))


def thinks(teacher: Teacher, prompts: Prompts, task: Task, answer: Completion, label_only: bool) -> bool:
    """Whether an answer to `think_request` has a label and, unless only that is wanted, such a rationale."""
    label, rationale = parsed(teacher, prompts, task, answer)
    return label is not None and (label_only or bool(usable_rationale(rationale, answer)))


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


def explained_reviews(config: TeacherConfig, reviews: Reviews) -> pd.DataFrame:
    """The validation and test reviews that the teacher writes a rationale of, with its own label."""
    table = reviews.table
    return table[(table["split"] != "train") & table["label"].notna() & config.held_out_rationales]


def gold_labels(teacher: Teacher, train: pd.DataFrame) -> dict[str, str]:
    """review id → gold label, of those for which a rationale given gold is wanted."""
    return {i: label for i, label in zip(train["id"], wanted_gold(teacher, train), strict=True) if label}


def wanted_gold(teacher: Teacher, train: pd.DataFrame) -> Iterator[str | None]:
    """Each review's gold label, None where no rationale given gold is wanted."""
    for label in train["label"]:
        yield None if pd.isna(label) or not teacher.config.gold_conditioned else label


def scored_reviews(
    held_out: pd.DataFrame, test: pd.DataFrame, train: pd.DataFrame, explained: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What is scored, in this order, each review once: calibration rows, which a run that is stopped early then has, and test
    reviews; training reviews; other held-out reviews that are explained."""
    first = pd.concat([held_out, test]).drop_duplicates("id")
    return first, train, explained[~explained["id"].isin(first["id"])]


def score_requests(teacher: Teacher, task: Task, prompts: Prompts, parts: Iterable[pd.DataFrame]) -> Iterator[Tagged]:
    """A label score of each review of the parts; tags are (review id, its place)."""
    reviews = itertools.chain.from_iterable(map(teacher.shown, parts))
    for n, (i, text) in enumerate(reviews):
        yield (i, n), score_request(teacher, task, prompts, text)


def score_request(teacher: Teacher, task: Task, prompts: Prompts, text: str) -> Request:
    """Asks for the log-probabilities of the label words: by their tokens, or by the words where there is no tokenizer."""
    words = [" " + prompts.label_words[label] for label in task.labels]
    tokens = [teacher.first_token(w) for w in words] if teacher.first_token else []
    if tokens and len(set(tokens)) < len(tokens):
        raise CotdError(
            f"the teacher's tokenizer begins two of the label words {', '.join(prompts.label_words.values())} with the same "
            "token, so that one token cannot score them. Name other label_words (teacher.prompts), or use strategy: chain_of_thought."
        )
    api = teacher.config.api
    if api is None:
        wanted: dict[str, Any] = {"allowed_token_ids": tokens, "logprobs": len(tokens)}
    elif api.server == "vllm" and tokens:
        wanted = {"label_words": words, "logprob_token_ids": tokens, "logprobs": len(tokens)}
    else:
        wanted = {"label_words": words, "logprobs": api.top_logprobs}
    return teacher.request(prompts.score(text), max_tokens=1, temperature=0.0, **wanted)


def explain_request(
    teacher: Teacher, prompts: Prompts, text: str, label: str, sample: int, structured: bool = False
) -> Request:
    if teacher.answers_json:
        form: dict[str, Any] = {"structured_outputs": {"json": prompts.json_schema(labelled=False)}}
        return teacher.request(prompts.explain_json(text, label), **writing(teacher, sample, JSON_TOKENS), **form)
    form = {"structured_outputs": {"regex": r" [^\n]{10,400}"}} if structured else {"stop": ["\n"]}
    return teacher.request(prompts.explain(text, label), **writing(teacher, sample), **form)


def think_request(teacher: Teacher, prompts: Prompts, text: str, sample: int, greedy: bool = False) -> Request:
    if teacher.answers_json:
        prompt, extra = prompts.chain_of_thought_json(text), JSON_TOKENS
        form: dict[str, Any] = {"json": prompts.json_schema(labelled=True)}
    else:
        prompt, extra, form = prompts.chain_of_thought(text), 0, {"regex": prompts.chain_of_thought_regex()}
    sampling = writing(teacher, sample, extra) | ({"temperature": 0.0} if greedy else {})
    return teacher.request(prompt, **sampling, structured_outputs=form)


def writing(teacher: Teacher, sample: int, extra_tokens: int = 0) -> dict[str, Any]:
    """Sampling parameters of a written answer; each sample has a seed of its own."""
    config = teacher.config
    plain = {
        "temperature": config.temperature,
        "seed": config.seed + sample,
        "max_tokens": config.max_rationale_tokens + extra_tokens,
    }
    return plain if config.api else plain | {"logprobs": 1}


def label_score(completion: Completion, task: Task) -> float:
    """log P(positive word) - log P(the other word) of a scoring request's answer."""
    positive = task.labels.index(task.positive)
    logprobs = completion["label_logprobs"]
    return float(logprobs[positive] - logprobs[1 - positive])


def fitted_calibration(config: TeacherConfig, task: Task, held_out: pd.DataFrame, scores: np.ndarray) -> Calibration:
    """What makes labels of scores, fitted on those of the calibration reviews.

    Args:
        scores: of each of `held_out`, NaN where the teacher gave none.

    Raises:
        CotdError: there are none, or they are of reviews of one label only.
    """
    known = ~np.isnan(scores)
    if not known.any():
        raise CotdError("the teacher scored none of the validation reviews, so its labels cannot be calibrated.")
    settings = config.calibration
    gold = (held_out["label"] == task.positive).to_numpy()[known] if settings.method == "platt" else None
    if gold is not None and len(set(gold)) < 2:
        raise CotdError("the teacher scored validation reviews of one label only, so its labels cannot be calibrated.")
    return calibrate(settings.method, scores[known], gold, settings.prior)


def calibrated_label(task: Task, calibration: Calibration, score: np.float64) -> tuple[str, float]:
    """(label, its probability) for a score."""
    p_positive = float(calibration.probability(np.asarray(score)))
    other = next(label for label in task.labels if label != task.positive)
    return (task.positive, p_positive) if p_positive >= 0.5 else (other, 1 - p_positive)


def origin_of(teacher: Teacher, prompts: Prompts) -> dict[str, str]:
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": prompts.hash}


def test_table(test: pd.DataFrame, predicted: Labels, unasked: set[str]) -> pd.DataFrame:
    """The teacher's own labels beside gold; a missing answer stays None and counts as wrong, one not asked for is left out."""
    test = test[~test["id"].isin(list(unasked))]
    nothing = (None, None)
    table = pd.DataFrame({"review_id": test["id"].to_list(), "gold": test["label"].to_list()})
    table["predicted"] = pd.Series([predicted.get(i, nothing)[0] for i in test["id"]], dtype=object)
    table["label_probability"] = [predicted.get(i, nothing)[1] for i in test["id"]]
    return table
