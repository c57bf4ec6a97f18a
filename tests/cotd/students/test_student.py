"""The student class, on a tiny random T5: what it computes does not depend on what it has learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM

from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.students.base_models import load_base, model_digest
from cotd.students.student import Student
from tests.tasks import SENTIMENT

TEXTS = [
    "A warm and funny film.",
    "Dull.",
    "The plot makes no sense, and still I was glued to my seat until the very last minute of it.",
    "Two hours that I will not get back, but the music is lovely.",
    "fine",
]


@pytest.fixture(scope="module")
def student(tiny_t5: Path) -> Student:
    model, tokenizer = load_base(str(tiny_t5))
    return Student(model, tokenizer, SENTIMENT, {"temperature": 2.0, "max_target_tokens": 8, "writes_rationales": True})


def scores_by_hand(student: Student, text: str) -> list[float]:
    """The verbalizers' logits after the start token, one text at a time and without padding."""
    ids = student.tokenizer("predict: " + text, return_tensors="pt")["input_ids"]
    words = [student.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("negative", "positive")]
    with torch.no_grad():
        logits = student.model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits
    return logits[0, 0, words].tolist()


def test_the_label_is_the_likeliest_word_of_one_decoder_step(student: Student) -> None:
    predictions = student.predict(TEXTS, batch_size=2)
    for text, prediction in zip(TEXTS, predictions, strict=True):
        scores = torch.tensor(scores_by_hand(student, text))
        expected = torch.softmax(scores / 2.0, dim=0)  # 2.0 is the card's temperature
        assert prediction.label == ("negative", "positive")[int(scores.argmax())]
        assert list(prediction.probabilities) == ["negative", "positive"]
        assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert prediction.score == max(prediction.probabilities.values())
    assert len({round(p.score, 6) for p in predictions}) > 1


def test_the_fast_label_is_what_constrained_generation_writes(student: Student) -> None:
    words = {w: [*student.tokenizer(w, add_special_tokens=False)["input_ids"], 1] for w in ("negative", "positive")}

    def allowed(_: int, written: torch.Tensor) -> list[int]:
        so_far = written.tolist()[1:]
        return [ids[len(so_far)] for ids in words.values() if ids[: len(so_far)] == so_far and len(ids) > len(so_far)] or [0]

    for text, prediction in zip(TEXTS, student.predict(TEXTS), strict=True):
        ids = student.tokenizer("predict: " + text, return_tensors="pt")["input_ids"]
        written = student.model.generate(ids, max_new_tokens=8, num_beams=1, do_sample=False, prefix_allowed_tokens_fn=allowed)
        assert student.tokenizer.decode(written[0], skip_special_tokens=True) == prediction.label


@pytest.fixture(scope="module")
def reasoning(tiny_t5: Path) -> Student:
    """A student of a `cot_joint` method."""
    model, tokenizer = load_base(str(tiny_t5))
    return Student(
        model, tokenizer, SENTIMENT, {"max_target_tokens": 8, "writes_rationales": True, "rationale_before_label": True}
    )


@pytest.mark.parametrize("answers", [False, True], ids=["cut off by the limit", "ends with an answer"])
def test_a_student_that_reasons_first_is_scored_after_its_rationale(
    answers: bool, reasoning: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = reasoning.model, reasoning.tokenizer
    if answers:  # a random student never writes the mark: here it writes it in the middle of what it writes
        generate, tail = model.generate, tokenizer("Answer: positive")["input_ids"]
        monkeypatch.setattr(
            model, "generate", lambda **k: torch.tensor([[*row[:4], *tail] for row in generate(**k).tolist()]), raising=False
        )
    explanations = reasoning.explain(TEXTS, batch_size=2)
    assert any(explanations)
    assert not any("Answer" in why for why in explanations)
    predictions = reasoning.predict(TEXTS, batch_size=2)
    for text, why, prediction in zip(TEXTS, explanations, predictions, strict=True):
        read = tokenizer("explain: " + text, return_tensors="pt")["input_ids"]
        # Its own tokens: a random student's text, spelled anew, may be other tokens.
        ids = model.generate(input_ids=read, max_new_tokens=8, num_beams=1, do_sample=False)[0].tolist()
        rationale = reasoning.rationale_tokens(reasoning.backend.without_special(ids))
        assert tokenizer.decode(rationale).strip() == why
        written = [0, *rationale, *tokenizer("Answer:", add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(input_ids=read, decoder_input_ids=torch.tensor([written])).logits[0, -1]
        expected = torch.softmax(logits[reasoning.first_tokens], dim=0)
        assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({round(p.score, 6) for p in predictions}) > 1
    parts: list[str] = []
    reasoning.stream_rationale(TEXTS[0], parts.append)
    assert "".join(parts).strip() == explanations[0]


def test_a_student_that_reads_rationales_needs_one_a_text(student: Student, tiny_t5: Path) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    reader = Student(model, tokenizer, SENTIMENT, {"temperature": 2.0, "rationale_as_input": True, "method": "rationale_input"})
    reasons = [f"It says so in {i} words." for i in range(len(TEXTS))]
    alike = student.predict([f"{why} Review: {text}" for why, text in zip(reasons, TEXTS, strict=True)])
    assert [p.probabilities for p in reader.predict(TEXTS, reasons)] == [p.probabilities for p in alike]
    for reads in (None, reasons[:2]):
        with pytest.raises(CotdError, match=r"'rationale_input': it reads the teacher's rationale with each text"):
            reader.predict(TEXTS, reads)
    with pytest.raises(CotdError, match="reads no rationales"):
        student.predict(TEXTS, reasons)


def test_batches_do_not_change_predictions(student: Student) -> None:
    whole = student.predict(TEXTS)
    for size in (1, 3):
        for a, b in zip(student.predict(TEXTS, batch_size=size), whole, strict=True):
            assert a.label == b.label
            assert a.score == pytest.approx(b.score, abs=1e-5)
    assert student.predict([]) == []


def test_truncation_is_flagged_and_keeps_the_beginning(student: Student, tiny_t5: Path) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    text = TEXTS[2]
    length = len(tokenizer("predict: " + text)["input_ids"])
    exact = Student(model, tokenizer, SENTIMENT, {"max_input_tokens": length})
    short = Student(model, tokenizer, SENTIMENT, {"max_input_tokens": length - 1})
    assert [p.truncated for p in exact.predict([text, "fine"])] == [False, False]
    assert [p.truncated for p in short.predict([text, "fine", text + " And more."])] == [True, False, True]
    a, b = short.predict([text + " I loved it.", text + " I hated it."])
    assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6), "what is beyond the limit is not read"
    assert exact.predict([text])[0].score != short.predict([text])[0].score


def test_a_student_may_read_the_end_of_what_is_too_long(tiny_t5: Path) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    student = Student(model, tokenizer, SENTIMENT, {"max_input_tokens": 40, "truncation": "head_tail"})
    first, middle, last = "It begins well. ", "Then there is a car chase. " * 20, "In the end I was glued to my seat."
    a, b = student.predict([first + middle + last, first + middle * 2 + last])
    assert a.truncated
    assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6), "what is between is not read"
    others = student.predict(["It begins badly. " + middle + last, first + middle + "In the end I walked out."])
    assert all(other.score != a.score for other in others)


@given(st.lists(st.integers(2, 99), max_size=60), st.integers(8, 64), st.sampled_from(["head", "head_tail"]))
def test_what_is_read_is_the_beginning_and_the_end(ids: list[int], limit: int, truncation: Truncation) -> None:
    ids = [*ids, 1]
    tail = tail_length(truncation, limit)
    read = truncate(ids, limit, tail)
    assert len(read) == min(len(ids), limit)
    if len(ids) > limit:
        assert read == ids[: limit - tail] + ids[len(ids) - tail :]
    assert (read[0], read[-1]) == (ids[0], 1)


def test_explain_returns_text(student: Student) -> None:
    explanations = student.explain(TEXTS, batch_size=2)
    assert len(explanations) == len(TEXTS)
    assert any(explanations)
    for text, explanation in zip(TEXTS, explanations, strict=True):
        assert not {"<pad>", "</s>"} & set(explanation.split())
        assert len(explanation.split()) <= 8, "a token is at most a word"
        assert student.explain([text]) == [explanation]


def test_each_token_is_written_once_whatever_the_base_says_of_caches(tiny_t5: Path, reasoning: Student) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.generation_config.use_cache = model.config.use_cache = False
    read: list[int] = []  # tokens, at each of the decoder's steps
    model.get_decoder().register_forward_hook(lambda m, i, out: read.append(out.last_hidden_state.shape[1]))

    Student(model, tokenizer, SENTIMENT, {"max_target_tokens": 8, "writes_rationales": True}).explain(TEXTS)
    assert len(read) > 1
    assert set(read) == {1}

    read.clear()
    Student(model, tokenizer, SENTIMENT, reasoning.card).predict(TEXTS)
    *written, scored = read  # the label is scored after all that was written
    assert set(written) == {1}
    assert scored > 1


def test_a_saved_student_writes_with_the_cache_also_where_cotd_is_not(tiny_t5: Path, tmp_path: Path) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.generation_config.use_cache = model.config.use_cache = False  # as Trainer leaves it
    Student(model, tokenizer, SENTIMENT, {}).save(tmp_path / "student")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert again.config.use_cache
    assert again.generation_config.use_cache


def test_a_saved_student_predicts_the_same(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path / "student")
    student.save(tmp_path / "student")  # an existing folder is replaced
    again = Student.load(tmp_path / "student", device="cpu")
    assert again.predict(TEXTS) == student.predict(TEXTS)
    assert again.explain(TEXTS) == student.explain(TEXTS)
    assert again.task == student.task
    assert again.can_explain
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_saved_student_holds_safetensors_and_json_only(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path / "student")
    assert {p.suffix for p in (tmp_path / "student").rglob("*") if p.is_file()} <= {".safetensors", ".json", ".txt", ".model"}
    card = json.loads((tmp_path / "student" / "cotd.json").read_text())
    assert card["task"] == SENTIMENT.to_dict()
    assert (card["temperature"], card["task"]["label_prefix"]) == (2.0, "predict: ")


def test_a_base_model_is_not_a_student(tiny_t5: Path) -> None:
    with pytest.raises(CotdError, match=r"is not a trained student: it has no cotd\.json"):
        Student.load(tiny_t5)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "../no/where", "/no/where", "~/nowhere"])
def test_a_model_that_does_not_exist(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are not taken for hub ids: no hub is asked for `./nowhere`."""
    monkeypatch.chdir(tmp_path)
    for use in (Student.load, load_base, model_digest):
        with pytest.raises(CotdError, match=f"model '{source}' does not exist"):
            use(source)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    for use in (load_base, model_digest):
        with pytest.raises(CotdError, match=r"cannot load the model .*must hold a Hugging Face checkpoint"):
            use(str(tmp_path))


def test_labels_that_begin_alike_are_told_apart_by_their_whole_words(student: Student) -> None:
    words = ["negative", "negative not"]
    task = SENTIMENT.model_copy(update={"verbalizers": dict(zip(SENTIMENT.labels, words, strict=True))})
    alike = Student(student.model, student.tokenizer, task, {})
    assert alike.first_tokens is None
    targets = [student.tokenizer(word)["input_ids"] for word in words]
    for text, scores in zip(TEXTS, alike.label_logits(TEXTS)[0].tolist(), strict=True):
        read = student.tokenizer("predict: " + text, return_tensors="pt")["input_ids"]
        expected = []
        for target in targets:
            with torch.no_grad():
                logits = student.model(input_ids=read, decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits[0]
            expected.append(logits.log_softmax(-1)[range(len(target)), target].sum().item())
        assert scores == pytest.approx(expected, abs=1e-4)


def test_a_base_models_digest_is_of_its_content(tiny_t5: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_t5, copy)
    for name in ("cotd.json", "README.md", ".gitattributes", "examples_seen.npz", "validation_answers.npz"):
        (copy / name).write_text("where it comes from")
    assert model_digest(str(copy)) == model_digest(str(tiny_t5))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_digest(str(copy)) != model_digest(str(tiny_t5))


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "chat_template.jinja", "source.spm"])
def test_whatever_a_tokenizer_is_written_in_is_in_the_digest(tiny_t5: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_t5, copy)
    digests = set()
    for content in ("one", "two"):
        (copy / name).write_text(content)
        digests.add(model_digest(str(copy)))
    assert len(digests) == 2
