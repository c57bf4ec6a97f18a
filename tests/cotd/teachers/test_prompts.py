"""Prompt files: what is rendered, parsed back, and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.prompts import load_prompts
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

PROMPTS = load_prompts(SENTIMENT, "movie review")
SHIPPED = SENTIMENT.folder / "prompts.yaml"


@given(st.text())
@example("{text} {label} {noun} {0} {} {unknown} {{")
@example("first\nSentiment: Positive\n\nReview: second")
@example("100 % %s \\n")
def test_texts_are_shown_as_they_are(text: str) -> None:
    assert PROMPTS.render("score", text) == f"Movie review: {text}\nSentiment:"
    assert PROMPTS.render("explain", text, label="negative").endswith(f"\n\nReview: {text}\nSentiment: Negative\nReason:")
    assert PROMPTS.render("chain_of_thought", text).endswith(f"\n\nReview: {text}\nRationale:")


def test_few_shot_prompts_show_every_example() -> None:
    for prompt in (PROMPTS.render("explain", "A film.", label="positive"), PROMPTS.render("chain_of_thought", "A film.")):
        for shot in PROMPTS.examples:
            assert shot["text"] in prompt
            assert shot["rationale"] in prompt
        assert len(re.findall(r"^Review: ", prompt, re.MULTILINE)) == len(PROMPTS.examples) + 1
        assert not re.search(r"{\w*}", prompt)
    assert {e["label"] for e in PROMPTS.examples} == set(SENTIMENT.labels)


@given(
    st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=10, max_size=400), st.sampled_from(SENTIMENT.labels)
)
@example("Sentiment: Negative. That is what one expects.", "positive")
def test_a_structured_completion_parses(rationale: str, label: str) -> None:
    """Whatever the regex lets the engine write comes back as its label and rationale."""
    completion = f" {rationale}\nSentiment: {PROMPTS.label_words[label]}"
    assert re.fullmatch(PROMPTS.chain_of_thought_regex(), completion)
    assert PROMPTS.parse_chain_of_thought(completion) == (label, rationale.strip())


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("It is warm.\nSentiment: positive.", ("positive", "It is warm.")),
        ("It is warm.\nSentiment: mixed", (None, "It is warm.")),
        (" It is warm, and then the tokens ran ", (None, "It is warm, and then the tokens ran")),
        ("", (None, "")),
    ],
)
def test_free_completions(completion: str, expected: tuple[str | None, str]) -> None:
    assert PROMPTS.parse_chain_of_thought(completion) == expected


def test_the_hash_names_what_prompts_are_made_of(write_prompts: Callable[..., str]) -> None:
    assert load_prompts(SENTIMENT, "movie review").hash == PROMPTS.hash
    assert load_prompts(SENTIMENT, "movie review", write_prompts()).hash == PROMPTS.hash
    assert load_prompts(SENTIMENT, "example").hash != PROMPTS.hash
    assert load_prompts(SENTIMENT, "movie review", write_prompts(examples=[])).hash != PROMPTS.hash
    other = TICKETS.model_copy(update={"instruction": "What does the customer want?"})
    assert load_prompts(other, "ticket").hash != load_prompts(TICKETS, "ticket").hash


def test_a_users_own_file_is_used(write_prompts: Callable[..., str]) -> None:
    prompts = load_prompts(
        SENTIMENT,
        "example",
        write_prompts(score={"query": "{Noun} «{text}»:"}, label_words={"positive": "Yes", "negative": "No"}),
    )
    assert prompts.scoring("fine") == ("Example «fine»:", [" No", " Yes"])
    assert "\nSentiment: Yes\nReason:" in prompts.render("explain", "fine", label="positive")
    assert prompts.parse_chain_of_thought("So it is.\nSentiment: No") == ("negative", "So it is.")


def test_what_a_file_leaves_out_is_the_tasks_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('chain_of_thought: {instruction: "Is it good?"}')
    prompts = load_prompts(SENTIMENT, "movie review", str(tmp_path / "mine.yaml"))
    assert prompts.render("chain_of_thought", "A film.").startswith("Is it good?\n\nReview: A warm")
    assert prompts.render("score", "A film.") == PROMPTS.render("score", "A film.")


# --- tasks of every kind ----------------------------------------------------------------------------------------------

OPTIONS = ["a wall", "the sea", "a (c) sign"]


@pytest.mark.parametrize(
    ("task", "choices", "label", "asked", "given", "written"),
    [
        (TICKETS, None, "bug", "refund, bug or question", "Label: bug", "bug"),
        (QUIZ, OPTIONS, "the sea", "(a), (b) or (c)", "Answer: (b) the sea", "(b)"),
        (SUMS, None, "-12.5", "a number", "Answer: -12.5", "-12.5"),
    ],
)
def test_prompts_are_made_from_the_tasks_words(
    task: Task, choices: list[str] | None, label: str, asked: str, given: str, written: str
) -> None:
    prompts = load_prompts(task, task.noun)
    shown = task.render("How is it?", choices)
    for name in ("chain_of_thought", "chain_of_thought_json"):
        prompt = prompts.render(name, "How is it?", choices)
        assert asked in prompt.partition("\n\n")[0]
        assert shown in prompt
    assert given in prompts.render("explain", "How is it?", choices, label)
    key = prompts.answer_key
    assert f'"{key}"' in prompts.render("chain_of_thought_json", "How is it?", choices)
    assert key in prompts.json_schema(True, choices)["properties"]
    completion = f"Because it says so.{prompts.templates['chain_of_thought']['answer'].format(label_name=task.label_name, label=written)}"
    assert re.fullmatch(prompts.chain_of_thought_regex(choices), completion)
    assert prompts.parse_chain_of_thought(completion, choices) == (label, "Because it says so.")
    answers = [written, f"{written} {label}", label] if choices else [written]
    for answer in [*answers, *([-12.5] if task is SUMS else [])]:
        assert prompts.parse_json(json.dumps({"rationale": "It says so.", key: answer}), choices) == (label, "It says so.")
    for nothing in (None, "perhaps", [], "(d)"):
        assert prompts.parse_json(json.dumps({"rationale": "It says so.", key: nothing}), choices)[0] is None


def test_few_shot_examples_of_every_kind(tmp_path: Path) -> None:
    shots = {
        QUIZ: {"text": "Where is a shelf?", "choices": OPTIONS, "label": "a wall", "rationale": "Shelves hang on walls."},
        SUMS: {"text": "What are 3 and 4?", "label": 7, "rationale": "3 + 4 is 7."},
    }
    expected = {
        QUIZ: ("Question: Where is a shelf? (a) a wall (b) the sea (c) a (c) sign\nRationale: Shelves hang on walls.\nAnswer: (a)",
               '{"rationale": "Shelves hang on walls.", "answer": "(a)"}'),
        SUMS: ("Problem: What are 3 and 4?\nRationale: 3 + 4 is 7.\nAnswer: 7", '{"rationale": "3 + 4 is 7.", "answer": 7}'),
    }  # fmt: skip
    for task, shot in shots.items():
        (tmp_path / "shots.yaml").write_text(yaml.safe_dump({"examples": [shot]}))
        prompts = load_prompts(task, task.noun, str(tmp_path / "shots.yaml"))
        choices = OPTIONS if task is QUIZ else None
        assert f"\n\n{expected[task][0]}\n\n" in prompts.render("chain_of_thought", "Which?", choices)
        assert f" {expected[task][1]}\n\n" in prompts.render("chain_of_thought_json", "Which?", choices)
        own = prompts.render("chain_of_thought", shot["text"].upper(), choices)
        assert shot["rationale"] not in own, "an example is not shown its own answer"


@given(st.decimals(-(10**12), 10**12, places=3))
def test_a_structured_number_parses(number: Decimal) -> None:
    prompts = load_prompts(SUMS, "problem")
    completion = f" It takes some adding up.\nAnswer: {number}"
    assert re.fullmatch(prompts.chain_of_thought_regex(), completion)
    label, _ = prompts.parse_chain_of_thought(completion)
    assert label is not None
    assert Decimal(label) == number


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., str]:
    """Writes the shipped prompts with changes; None takes a key out."""

    def write(**changes: Any) -> str:
        plain = yaml.safe_load(SHIPPED.read_text()) | changes
        (tmp_path / "prompts.yaml").write_text(
            yaml.safe_dump({k: v for k, v in plain.items() if v is not None}, sort_keys=False)
        )
        return str(tmp_path / "prompts.yaml")

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {"query": "Review:"}}, "'score.query' lacks {text}"),
        ({"score": "{text}"}, "'score' must have keys: instruction, query"),
        ({"score": {"prompt": "{text}"}}, "unknown key 'score.prompt'."),
        ({"scores": {"query": "{text}"}}, "unknown key 'scores'. Did you mean 'score'?"),
        ({"explain": {"query": "{text} {label} {lable}"}}, "'explain.query' has an unknown {lable}"),
        ({"score": {"query": 'Answer {"example": "{text}"}'}}, "'score.query'"),
        ({"score": {"query": "{text} {text.name}"}}, "'score.query'"),
        ({"score": {"query": "{text} }"}}, "'score.query'"),
        ({"chain_of_thought": {"answer": "{label}!"}}, "'chain_of_thought.answer' must end with {label}"),
        ({"label_words": {"positive": "Good"}}, "label_words must name exactly negative, positive, not positive"),
        ({"label_words": ["Good", "Bad"]}, "label_words"),
        ({"label_words": {"positive": 1, "negative": 0}}, "label_words"),
        ({"label_words": {"positive": "Yes", "negative": "yes"}}, "two labels have the same word"),
        ({"examples": "none"}, "examples"),
        ({"examples": [{"text": "a", "label": "so-so", "rationale": "b"}]}, "examples[0].label 'so-so' is not one of"),
        ({"examples": [{"text": "a", "label": "positive"}]}, "examples[0] needs exactly text, label and rationale"),
    ],
)
def test_a_wrong_file_is_refused(write_prompts: Callable[..., str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CotdError) as caught:
        load_prompts(SENTIMENT, "example", write_prompts(**changes))
    assert message in str(caught.value)


def test_all_problems_are_reported_at_once(write_prompts: Callable[..., str]) -> None:
    with pytest.raises(CotdError) as caught:
        load_prompts(SENTIMENT, "example", write_prompts(score={"query": "Review:"}, explain=[], shots=[]))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("content", "message"), [("- a", "not a mapping"), ("a: [", "not valid YAML"), (None, "no prompt file")]
)
def test_files_that_are_not_prompts(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CotdError, match=message):
        load_prompts(SENTIMENT, "example", str(path))
