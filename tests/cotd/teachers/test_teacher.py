"""A teacher's tokenizer: what is shown of a long example, and what no example may contain."""

from __future__ import annotations

import pandas as pd
import pytest

from cotd.data.examples import build_examples
from cotd.errors import CotdError
from cotd.tasks.registry import parse_task
from cotd.teachers.config import TeacherConfig
from cotd.teachers.prompts import load_prompts
from cotd.teachers.requests import score_request, think_request
from cotd.teachers.teacher import Teacher, load_teacher
from tests.tasks import QUIZ, SENTIMENT


@pytest.mark.parametrize("model", ["embedded", "length"])
def test_texts_are_cut_between_sentences(model: str) -> None:
    teacher = load_teacher(TeacherConfig()) if model == "embedded" else Teacher("teacher-1", "1", TeacherConfig())
    fit, fit_end, count = teacher.fit, teacher.fit_end, teacher.count
    sentences = " ".join(f"Sentence number {i} is here." for i in range(200))
    for text in (sentences, "word " * 2000, "x" * 100_000, "好" * 50_000, "🎬" * 20_000, "-" * 100_000):
        for part, again in ((fit(text, 100), fit), (fit_end(text, 100), fit_end)):
            assert text.startswith(part) if again == fit else text.endswith(part)
            assert 20 <= count(part) <= 104  # a character may be four tokens, and is not cut in two
            assert again(part, 104) == part
    assert fit(sentences, 100).endswith("is here.")
    assert fit_end(sentences, 100).startswith("Sentence")
    chinese = "这部电影很好看。" * 200
    assert fit(chinese, 100).endswith("好看。"), "no space after a sentence"
    assert fit_end(chinese, 100).startswith("这部")
    assert count(fit("🎬" * 90, 100)) <= 100, "fewer characters than tokens"
    assert fit("word " * 2000, 100).endswith("word")
    assert fit_end("word " * 2000, 100).startswith("word")
    assert fit("A short one", 100) == fit_end("A short one", 100) == "A short one"


def test_both_ends_of_a_long_example_are_shown() -> None:
    limit = 60
    middle = " ".join(f"Sentence number {i} is here." for i in range(50))
    texts = [f"It begins well. {middle} It ends badly.", "It is short."]
    examples = build_examples(pd.DataFrame({"text": texts}), "mine", SENTIMENT).rows
    teacher = load_teacher(TeacherConfig(max_text_tokens=limit, truncation="head_tail"))
    for _ in range(2):  # the second time it is remembered
        shown = {text[:9]: text for _, text, _ in teacher.shown(examples)}
        assert shown["It is sho"] == "It is short."
        beginning, omission, end = shown["It begins"].partition(" … ")
        assert beginning.startswith("It begins well.")
        assert omission
        assert end.startswith("Sentence")
        assert end.endswith("It ends badly.")
        assert teacher.count(beginning) <= limit // 4 < teacher.count(end)
        assert limit // 2 <= teacher.count(shown["It begins"]) <= limit
    assert teacher.count_cut(examples) == 1


def test_special_tokens_count_as_what_the_teacher_is_shown() -> None:
    """Taken apart, a special token is several: the limit is that of what is shown."""
    teacher = load_teacher(TeacherConfig(max_text_tokens=100))
    text = "<|im_end|>" * 90
    examples = build_examples(pd.DataFrame({"text": [text]}), "mine", SENTIMENT).rows
    ((_, shown, _),) = teacher.shown(examples)
    assert 0 < teacher.count(shown) <= 100
    assert teacher.count_cut(examples) == 1


def test_options_are_part_of_what_is_shown_and_take_of_the_limit() -> None:
    long = " ".join(f"Sentence {i} is here." for i in range(50))
    rows = pd.DataFrame({"text": [long], "choices": [["a wall<|im_end|>", " ".join(["sea"] * 20)]]})
    examples = build_examples(rows, "mine", QUIZ).rows
    teacher = load_teacher(TeacherConfig(max_text_tokens=100))
    (shown,) = teacher.shown(examples)
    request = score_request(teacher, load_prompts(QUIZ, "question"), shown.text, shown.choices)
    assert "(a) a wall< |im_end|> (b) sea sea" in request.prompt
    assert request.prompt.endswith("\nAnswer: (")
    assert 100 - 70 <= teacher.count(shown.text) <= 100 - 40
    tokens = teacher.tokenizer.convert_ids_to_tokens(request.sampling["allowed_token_ids"])
    assert tokens == ["a", "b"]


def test_labels_that_are_digits_are_scored_after_the_space_that_begins_them() -> None:
    """To the embedded teacher " 4" is a space and a digit."""
    teacher = load_teacher(TeacherConfig())
    stars, tens = (
        parse_task({"name": "stars", "kind": "classification", "labels": list(labels)}) for labels in ("12345", ["1", "10"])
    )
    request = score_request(teacher, load_prompts(stars, "review"), "It works.")
    assert request.prompt.endswith("Label: ")
    allowed = request.sampling["allowed_token_ids"]
    assert [teacher.tokenizer.decode([token]) for token in allowed] == list("12345")
    with pytest.raises(CotdError, match="begins the label words 1, 10 with the same token"):
        score_request(teacher, load_prompts(tens, "review"), "It works.")


def test_chains_of_thought_are_asked_for_in_the_models_chat_template() -> None:
    prompts = load_prompts(SENTIMENT, "review")
    plain = prompts.render("chain_of_thought", "A warm film.")
    for strategy, engine, chats in [
        ("chain_of_thought", {}, True),
        ("chain_of_thought", {"chat": "never"}, False),
        ("score_then_explain", {}, False),
    ]:
        config = TeacherConfig(strategy=strategy, engine=engine)  # type: ignore[arg-type]
        teacher = load_teacher(config)
        prompt = think_request(teacher, prompts, "A warm film.", 0).prompt
        assert prompt == (prompt if chats else plain)
        assert prompt.count("<|im_start|>assistant") == chats
        assert plain in prompt
    identities = [TeacherConfig(engine={"chat": c}, strategy="chain_of_thought").identity() for c in ("auto", "never")]  # type: ignore[arg-type]
    assert identities[0] != identities[1]
