"""Prompt files: what is rendered, parsed back, and refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.teachers.prompts import load_prompts
from tests.tasks import SENTIMENT

PROMPTS = load_prompts(SENTIMENT, "movie review")
SHIPPED = SENTIMENT.folder / "prompts.yaml"


@given(st.text())
@example("{text} {label} {noun} {0} {} {unknown} {{")
@example("first\nSentiment: Positive\n\nReview: second")
@example("100 % %s \\n")
def test_texts_are_shown_as_they_are(text: str) -> None:
    assert PROMPTS.render("score", text) == f"Movie review: {text}\nSentiment:"
    assert PROMPTS.render("explain", text, "negative").endswith(f"\n\nReview: {text}\nSentiment: Negative\nReason:")
    assert PROMPTS.render("chain_of_thought", text).endswith(f"\n\nReview: {text}\nRationale:")


def test_few_shot_prompts_show_every_example() -> None:
    for prompt in (PROMPTS.render("explain", "A film.", "positive"), PROMPTS.render("chain_of_thought", "A film.")):
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
    assert PROMPTS.parse_chain_of_thought(completion, SENTIMENT) == (label, rationale.strip())


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
    assert PROMPTS.parse_chain_of_thought(completion, SENTIMENT) == expected


def test_the_hash_names_file_and_noun(write_prompts: Callable[..., str]) -> None:
    assert load_prompts(SENTIMENT, "movie review").hash == PROMPTS.hash
    assert load_prompts(SENTIMENT, "example").hash != PROMPTS.hash
    assert load_prompts(SENTIMENT, "movie review", write_prompts()).hash != PROMPTS.hash


def test_a_users_own_file_is_used(write_prompts: Callable[..., str]) -> None:
    prompts = load_prompts(
        SENTIMENT, "example", write_prompts(score="{Noun} «{text}»:", label_words={"positive": "Yes", "negative": "No"})
    )
    assert prompts.render("score", "fine") == "Example «fine»:"
    assert "\nSentiment: Yes\nReason:" in prompts.render("explain", "fine", "positive")
    assert prompts.parse_chain_of_thought("So it is.\nSentiment: No", SENTIMENT) == ("negative", "So it is.")


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[..., str]:
    """Writes the shipped prompts with changes; None takes a key out."""

    def write(**changes: Any) -> str:
        plain = yaml.safe_load(SHIPPED.read_text()) | changes
        (tmp_path / "prompts.yaml").write_text(yaml.safe_dump({k: v for k, v in plain.items() if v is not None}))
        return str(tmp_path / "prompts.yaml")

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "Review:"}, "'score' lacks {text}"),
        ({"score": None}, "'score' is missing"),
        ({"scores": "{text}"}, "unknown key 'scores'. Did you mean 'score'?"),
        ({"explain": "{text} {label} {lable}"}, "'explain' has an unknown {lable}"),
        ({"score": 'Answer {"example": "{text}"}'}, "'score'"),
        ({"score": "{text} {text.name}"}, "'score'"),
        ({"score": "{text} }"}, "'score'"),
        ({"label_words": {"positive": "Good"}}, "label_words must name exactly negative, positive, not positive"),
        ({"label_words": ["Good", "Bad"]}, "label_words"),
        ({"label_words": {"positive": 1, "negative": 0}}, "label_words"),
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
        load_prompts(SENTIMENT, "example", write_prompts(score="Review:", explain=None, shots=[]))
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
