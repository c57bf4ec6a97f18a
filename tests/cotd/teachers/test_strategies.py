"""Strategies, with a teacher that follows rules in place of an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.data.examples import Examples, build_examples
from cotd.errors import CotdError
from cotd.teachers.annotations import ANNOTATION_COLUMNS, tidy_rationale
from cotd.teachers.config import TeacherConfig
from cotd.teachers.filters import FilterContext, apply_filters
from cotd.teachers.output import TeacherOutput
from cotd.teachers.prompts import Prompts, load_prompts
from cotd.teachers.requests import Request
from cotd.teachers.strategies import STRATEGIES
from cotd.teachers.teacher import Teacher
from cotd.utils.text import count_words
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

PROMPTS = load_prompts(SENTIMENT, "movie review")


@pytest.fixture
def examples(example_rows: pd.DataFrame) -> Examples:
    return build_examples(example_rows, "small", SENTIMENT)


def run(
    examples: Examples, double: Any, strategy: str = "score_then_explain", prompts: Prompts = PROMPTS, **settings: Any
) -> TeacherOutput:
    config = TeacherConfig(strategy=strategy, **settings)  # type: ignore[arg-type]
    teacher = Teacher("double", "1", config)
    return STRATEGIES[strategy](teacher, examples, prompts, double.ask)


def change(rows: pd.DataFrame, split: str, **columns: Any) -> Examples:
    """The examples of `rows` with columns of one split changed."""
    changed = rows.copy()
    for column, value in columns.items():
        at = changed["split"] == split
        changed.loc[at, column] = changed.loc[at, column].map(value) if callable(value) else value
    return build_examples(changed, "small", SENTIMENT)


def flipped(label: str) -> str:
    return {"positive": "negative", "negative": "positive"}[label]


def own(output: TeacherOutput) -> pd.DataFrame:
    return output.annotations.table()[~output.annotations.table()["gold_conditioned"]].set_index("example_id")


# --- score, then explain ----------------------------------------------------------------------------------------


def test_a_biased_teacher_labels_well_once_calibrated(examples: Examples, teacher_double: Any) -> None:
    output = run(examples, teacher_double)
    train = examples.split("train").set_index("id")
    assert list(output.annotations.table().columns) == ANNOTATION_COLUMNS
    assert own(output)["label"].to_dict() == train["label"].to_dict()
    assert own(output)["label_probability"].between(0.5, 1).all()
    assert (output.test["predicted"] == output.test["gold"]).all()
    assert output.annotations.table()["error"].isna().all()
    raw = run(examples, teacher_double, calibration={"method": "none"})
    assert set(own(raw)["label"]) == {"positive"}, "the double is biased, or this test shows nothing"
    assert output.calibration is not None
    assert output.calibration["rows"] == 24
    assert "validation" in output.calibration["used"]


def test_the_calibration_uses_no_test_row(examples: Examples, example_rows: pd.DataFrame, teacher_double: Any) -> None:
    output = run(examples, teacher_double)
    other_gold = run(change(example_rows, "test", label=flipped), teacher_double)
    other_texts = run(change(example_rows, "test", text=lambda t: t.replace("dull", "warm")), teacher_double)
    for other in (other_gold, other_texts):
        assert other.calibration == output.calibration
        pd.testing.assert_frame_equal(other.annotations.table(), output.annotations.table())
    assert (other_gold.test["predicted"] == other_gold.test["gold"].map(flipped)).all()


def test_the_calibration_does_use_validation_gold(example_rows: pd.DataFrame, teacher_double: Any) -> None:
    output = run(change(example_rows, "validation", label=flipped), teacher_double)
    train = build_examples(example_rows, "small", SENTIMENT).split("train").set_index("id")
    assert own(output)["label"].to_dict() == train["label"].map(flipped).to_dict()


def test_no_rationale_of_test_examples_is_requested(examples: Examples, teacher_double: Any) -> None:
    run(examples, teacher_double)
    explained = [r.prompt for r in teacher_double.asked if "allowed_token_ids" not in r.sampling]
    assert explained
    for text in [*examples.split("test")["text"], *examples.split("validation")["text"]]:
        assert not any(text in prompt for prompt in explained)


def test_a_rationale_for_an_equal_gold_label_is_requested_once(example_rows: pd.DataFrame, teacher_double: Any) -> None:
    wrong = example_rows.iloc[0]["text"]
    rows = example_rows.assign(label=[flipped(r.label) if r.text == wrong else r.label for r in example_rows.itertuples()])
    output = run(build_examples(rows, "small", SENTIMENT), teacher_double)
    keys = [r.key for r in teacher_double.asked if "allowed_token_ids" not in r.sampling]
    # 24 examples; the teacher differs from gold in one, whose two labels need a rationale each.
    assert len(keys) == len(set(keys)) == 25
    assert output.annotations.table()["gold_conditioned"].value_counts().to_dict() == {False: 24, True: 24}
    by_gold = output.annotations.table()[output.annotations.table()["gold_conditioned"]].set_index("example_id")["label"]
    assert (by_gold != own(output)["label"]).sum() == 1


def test_without_gold_conditioning_gold_is_not_shown(examples: Examples, teacher_double: Any) -> None:
    output = run(examples, teacher_double, gold_conditioned=False)
    assert not output.annotations.table()["gold_conditioned"].any()
    assert len(output.annotations.table()) == 24


def test_unlabelled_training_examples_get_the_teachers_label_only(example_rows: pd.DataFrame, teacher_double: Any) -> None:
    output = run(change(example_rows, "train", label=None), teacher_double)
    assert len(output.annotations.table()) == 24
    assert own(output)["label"].isin(SENTIMENT.labels).all()


def test_each_sample_has_its_own_seed(examples: Examples, teacher_double: Any) -> None:
    teacher_double.write = lambda request: f" Reason of seed {request.sampling['seed']}."
    output = run(examples, teacher_double, samples=3, temperature=0.7, seed=10, gold_conditioned=False)
    one = output.annotations.table()[
        output.annotations.table()["example_id"] == output.annotations.table()["example_id"].iloc[0]
    ]
    assert one["sample"].to_list() == [0, 1, 2]
    assert one["rationale"].to_list() == [f"Reason of seed {s}." for s in (10, 11, 12)]


def test_a_failed_score_is_quarantined_and_the_rest_continues(examples: Examples, teacher_double: Any) -> None:
    train = examples.split("train").iloc[0]
    test = examples.split("test").iloc[0]
    teacher_double.fails = lambda prompt: prompt.endswith("Sentiment:") and (train["text"] in prompt or test["text"] in prompt)
    output = run(examples, teacher_double)
    assert own(output).loc[train["id"], "error"] == "the engine ran out of memory"
    assert own(output)["error"].notna().sum() == 1
    assert output.test.set_index("example_id")["predicted"].isna().to_dict() == {
        i: i == test["id"] for i in examples.split("test")["id"]
    }


def test_failed_and_cut_off_rationales_are_quarantined(examples: Examples, teacher_double: Any) -> None:
    failing, short = examples.split("train")["text"][:2]
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and failing in prompt
    teacher_double.write = lambda request: " No." if short in request.prompt else " It says what it says."
    output = run(examples, teacher_double, gold_conditioned=False)
    errors = own(output)["error"].dropna()
    assert sorted(errors) == ["rationale is empty or shorter than three words", "the engine ran out of memory"]
    assert own(output).loc[errors.index, "label"].notna().all()


def test_platt_needs_gold_of_both_kinds(example_rows: pd.DataFrame, teacher_double: Any) -> None:
    unlabelled = change(example_rows, "validation", label=None)
    for examples in (unlabelled, change(example_rows, "validation", label="positive")):
        with pytest.raises(CotdError, match=r"gold labels of at least two kinds\. Use method: prior"):
            run(examples, teacher_double)
    assert not teacher_double.asked
    output = run(unlabelled, teacher_double, calibration={"method": "prior"})
    assert own(output)["label"].value_counts().to_dict() == {"positive": 12, "negative": 12}


def test_scores_of_one_label_cannot_calibrate(examples: Examples, teacher_double: Any) -> None:
    """The engine failed on every positive validation review: readable, not scikit-learn's complaint."""
    positive = examples.split("validation").query("label == 'positive'")["text"]
    teacher_double.fails = lambda prompt: any(text in prompt for text in positive)
    with pytest.raises(CotdError, match="calibrat"):
        run(examples, teacher_double)


# --- few-shot chain of thought ----------------------------------------------------------------------------------


def reason(request: Request) -> str:
    """Right completions of both kinds of prompt, except for example 2, of which no label is named."""
    if request.prompt.endswith("Reason:"):
        return " Because it says so itself."
    review = request.prompt.splitlines()[-2]
    if "number 2." in review:
        return " I cannot decide about that one"
    return f" The words are telling.\nSentiment: {'Positive' if 'warm' in review else 'Negative'}"


def test_chain_of_thought_parses_label_and_rationale(examples: Examples, teacher_double: Any) -> None:
    teacher_double.write = reason
    output = run(examples, teacher_double, "chain_of_thought")
    train = examples.split("train").set_index("id")
    odd = train.index[train["text"].str.contains("number 2.", regex=False)][0]
    usable = own(output).drop(odd)
    assert usable["label"].to_dict() == train["label"].drop(odd).to_dict()
    assert set(usable["rationale"]) == {"The words are telling."}
    assert set(usable["label_probability"]) == {1.0}
    assert usable["error"].isna().all()
    assert own(output).loc[odd, "error"] == "no label of the task in the completion"
    by_gold = output.annotations.table()[output.annotations.table()["gold_conditioned"]].set_index("example_id")
    assert by_gold["label"].to_dict() == train["label"].to_dict()
    assert set(by_gold["rationale"]) == {"Because it says so itself."}
    assert (output.test["predicted"] == output.test["gold"]).all()
    assert output.calibration is None


def test_chain_of_thought_keeps_held_out_rationales_if_configured(examples: Examples, teacher_double: Any) -> None:
    teacher_double.write = reason
    plain = run(examples, teacher_double, "chain_of_thought")
    assert plain.held_out.table().empty
    output = run(examples, teacher_double, "chain_of_thought", held_out_rationales=True)
    held_out = examples.table[examples.table["split"] != "train"]
    assert output.held_out.table().set_index("example_id")["rationale"].to_dict() == dict.fromkeys(
        held_out["id"], "The words are telling."
    )
    pd.testing.assert_frame_equal(output.annotations.table(), plain.annotations.table())
    pd.testing.assert_frame_equal(output.test, plain.test)


def test_chains_of_thought_are_held_to_the_format(examples: Examples, teacher_double: Any) -> None:
    teacher_double.write = reason
    run(examples, teacher_double, "chain_of_thought")
    assert all("regex" in r.sampling["structured_outputs"] for r in teacher_double.asked)


def test_unparsable_completions_of_test_examples_stay_without_a_label(examples: Examples, teacher_double: Any) -> None:
    teacher_double.write = lambda request: " I cannot decide."
    output = run(examples, teacher_double, "chain_of_thought")
    assert output.test["predicted"].isna().all()
    assert own(output)["label"].isna().all()
    assert own(output)["error"].notna().all()


def test_samples_vote(examples: Examples, teacher_double: Any) -> None:
    votes = {0: "Positive", 1: "Positive", 2: "Negative", 3: "who knows"}
    teacher_double.write = lambda request: f" So it seems to me.\nSentiment: {votes[request.sampling['seed']]}"
    output = run(examples, teacher_double, "chain_of_thought", samples=4, temperature=0.7, gold_conditioned=False)
    one = output.annotations.table()[
        output.annotations.table()["example_id"] == output.annotations.table()["example_id"].iloc[0]
    ]
    assert one["label"].fillna("").to_list() == ["positive", "positive", "negative", ""]
    assert one["label_probability"][:3].to_list() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    benchmark = [
        r
        for r in teacher_double.asked
        if r.prompt.splitlines()[-2].removeprefix("Review: ") in set(examples.split("test")["text"])
    ]
    assert {r.sampling["temperature"] for r in benchmark} == {0.0}


# --- tasks of every kind ----------------------------------------------------------------------------------------

SPLITS_OF_60 = ["train"] * 24 + ["validation"] * 24 + ["test"] * 12


def tickets() -> Examples:
    """60 tickets of three labels in turn, which their texts name."""
    labels = [TICKETS.labels[i % 3] for i in range(60)]
    texts = [f"Ticket {i} is about a {label}." for i, label in enumerate(labels)]
    return build_examples(pd.DataFrame({"text": texts, "label": labels, "split": SPLITS_OF_60}), "t", TICKETS)


def quiz() -> Examples:
    """60 questions, every other one with three options; the right one is called right, at each position in turn."""
    rows = []
    for i, split in enumerate(SPLITS_OF_60):
        options = [f"wrong {k}" for k in range(3 if i % 2 else 4)]
        options[(i // 2) % len(options)] = f"right {i}"
        rows.append((f"Which one is it, number {i}?", options, f"right {i}", split))
    return build_examples(pd.DataFrame(rows, columns=["text", "choices", "label", "split"]), "q", QUIZ)


def asked_about(prompt: str) -> str:
    """The text of an example, with its options."""
    return prompt.rpartition("\n\n")[2].splitlines()[0].partition(": ")[2]


def right_letter(prompt: str) -> int:
    return "abcd".index(asked_about(prompt).partition(" right")[0][-2])


def test_three_labels_are_scored_and_calibrated(teacher_double: Any) -> None:
    def score(request: Request) -> list[float]:
        """Sees the label, and is biased towards the second one."""
        words = asked_about(request.prompt)
        scores = np.array([float(label in words) + bias for label, bias in zip(TICKETS.labels, (0, 2, -1), strict=True)])
        return list(scores - np.log(np.exp(scores).sum()))

    teacher_double.score = score
    examples, prompts = tickets(), load_prompts(TICKETS, "support ticket")
    output = run(examples, teacher_double, prompts=prompts)
    assert output.test["predicted"].to_list() == output.test["gold"].to_list()
    assert own(output)["label"].to_dict() == examples.split("train").set_index("id")["label"].to_dict()
    assert output.calibration is not None
    assert len(output.calibration["biases"]) == 3
    raw = run(examples, teacher_double, prompts=prompts, calibration={"method": "none"})
    assert set(own(raw)["label"]) == {"bug"}
    balanced = run(examples, teacher_double, prompts=prompts, calibration={"method": "prior"})
    assert (balanced.test["predicted"] == balanced.test["gold"]).all()


def test_options_are_scored_by_their_letters(teacher_double: Any) -> None:
    def score(request: Request) -> list[float]:
        """Sees the right option, and prefers (a)."""
        letters = asked_about(request.prompt).count("(")
        scores = np.zeros(letters)
        scores[right_letter(request.prompt)] += 2.0
        scores[0] += 3.0
        return list(scores - np.log(np.exp(scores).sum()))

    teacher_double.score = score
    examples, prompts = quiz(), load_prompts(QUIZ, "question")
    output = run(examples, teacher_double, prompts=prompts, held_out_rationales=True)
    assert (output.test["predicted"] == output.test["gold"]).all()
    assert own(output)["label"].to_dict() == examples.split("train").set_index("id")["label"].to_dict()
    assert own(output)["label_probability"].between(0.5, 1).all()
    given = [r.prompt for r in teacher_double.asked if r.prompt.endswith("Reason:")]
    assert all(f"Answer: ({'abcd'[right_letter(p)]}) right " in p for p in given)
    assert len(output.held_out.table()) == 36
    raw = run(examples, teacher_double, prompts=prompts, calibration={"method": "none"})
    assert (own(raw)["label"] != own(output)["label"]).sum() > 12


def test_platt_needs_right_options_at_two_positions(teacher_double: Any) -> None:
    rows = [(f"Number {i}?", ["yes", f"no {i}"], "yes", split) for i, split in enumerate(SPLITS_OF_60)]
    examples = build_examples(pd.DataFrame(rows, columns=["text", "choices", "label", "split"]), "q", QUIZ)
    with pytest.raises(CotdError, match="gold labels of at least two kinds"):
        run(examples, teacher_double, prompts=load_prompts(QUIZ, "question"))


@pytest.mark.parametrize("kind", ["labels", "options", "numbers"])
def test_chains_of_thought_of_every_kind_vote(teacher_double: Any, kind: str) -> None:
    """Three samples, of which two are right; the parsed answer is what counts."""
    if kind == "numbers":
        rows = [(f"What is {i} and 1000?", f"{i + 1000}", split) for i, split in enumerate(SPLITS_OF_60)]
        examples = build_examples(pd.DataFrame(rows, columns=["text", "label", "split"]), "s", SUMS)
    else:
        examples = tickets() if kind == "labels" else quiz()

    def write(request: Request) -> str:
        text, wrong = asked_about(request.prompt), request.sampling["seed"] == 2
        if request.prompt.endswith("Reason:"):
            return " It says so itself."
        if kind == "labels":
            label = next(label for label in TICKETS.labels if label in text)
            return f" One can tell.\nLabel: {'question' if wrong else label.upper()}"
        if kind == "options":
            letter = right_letter(request.prompt)
            return f" One can tell.\nAnswer: ({'abc'[(letter + 1) % 3] if wrong else 'abcd'[letter]})"
        return f" One adds them up.\nAnswer: {0 if wrong else f'{int(text.split()[2]) + 1000:,}.0'}"

    teacher_double.write = write
    task = {"labels": TICKETS, "options": QUIZ, "numbers": SUMS}[kind]
    output = run(examples, teacher_double, "chain_of_thought", load_prompts(task, task.noun), samples=3, temperature=0.7)
    gold = examples.split("train").set_index("id")["label"]
    assert (output.test["predicted"] == output.test["gold"]).all()
    table = output.annotations.table()
    votes = table[~table["gold_conditioned"] & (table["sample"] == 0)].set_index("example_id")
    assert votes["label"].to_dict() == gold.to_dict()
    assert (votes["label_probability"] >= 2 / 3 - 1e-9).all()
    assert table["error"].isna().all()
    filtered = apply_filters(table, ["agrees_with_majority"], FilterContext(task, gold, lambda ids: ([], [])))
    kept = filtered[filtered["error"].isna()]
    assert (kept["label"] == kept["example_id"].map(gold)).all()


# --- rationales -------------------------------------------------------------------------------------------------

prose = st.lists(
    st.sampled_from(["It", "is", "warm.", "funny!", "\n", "  ", "(really?)", "3.5", "stars", '"Wow."']), max_size=12
)
texts = st.text() | prose.map(" ".join)


@given(texts, st.sampled_from(["stop", "length"]))
def test_a_rationale_is_one_line_of_the_completion(text: str, finish_reason: str) -> None:
    rationale, error = tidy_rationale(text, finish_reason)
    assert rationale == " ".join(rationale.split())
    assert " ".join(text.split()).startswith(rationale)
    assert (error is None) <= (count_words(rationale) >= 3)
    if error is None:
        assert tidy_rationale(rationale, finish_reason) == (rationale, None)
        assert finish_reason == "stop" or rationale.rstrip("\"')]")[-1] in ".!?"
    if finish_reason == "stop":
        assert rationale == " ".join(text.split())


def test_a_cut_off_sentence_goes() -> None:
    assert tidy_rationale(" It is warm and funny. The lea", "length") == ("It is warm and funny.", None)
    assert tidy_rationale(" It costs 3.50 and the lea", "length")[1] == "rationale cut off by the token limit"
    assert tidy_rationale(" It is warm and funny", "stop") == ("It is warm and funny", None)


@pytest.mark.parametrize(
    ("rationale", "usable"),
    [
        ("很好看的电影", True),
        ("很好", False),
        ("とても良い映画だ。", True),
        ("หนังเรื่องนี้สนุกมาก", True),
        ("Good film 很好", True),
        ("Great!", False),
    ],
)
def test_text_without_spaces_is_not_too_short(rationale: str, usable: bool) -> None:
    assert (tidy_rationale(rationale, "stop")[1] is None) == usable
