"""Training on the real path, of a tiny random T5 on two dozen examples."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from cotd.data.examples import build_examples
from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.training.train import train_trial
from tests.cotd.training.helpers import (
    Trained,
    make_folder,
    make_trial,
    parameters,
    timeless,
)
from tests.tasks import SENTIMENT


def test_a_trial_trained_twice_gives_the_same(
    trained: Trained, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, folder, result = trained
    again = make_folder(tmp_path / "again")
    assert timeless(train_trial(trial, again, examples, annotations)) == timeless(result)
    assert [*map(timeless, again.curve())] == [*map(timeless, folder.curve())]
    first, second = parameters(folder), parameters(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_student(
    trained: Trained, tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "seed")
    train_trial(make_trial(tiny_t5, "cot_unlabelled", dropout=0.1, precision="bfloat16", seed=1), folder, examples, annotations)
    first, second = parameters(trained[1]), parameters(folder)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_finished_trials_folder(trained: Trained, examples: pd.DataFrame) -> None:
    _, folder, result = trained
    assert folder.done
    assert folder.result() == result
    files = ["metrics.jsonl", "predictions.parquet", "rationales.parquet", "result.json", "student", "validation.parquet"]
    assert sorted(p.name for p in folder.path.iterdir()) == files
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]
    assert not [p for p in folder.student.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    card = json.loads((folder.student / "cotd.json").read_text())
    assert card["method"] == "cot_unlabelled"
    assert card["teacher"] == {"model": "double"}
    assert card["metrics"]["test"] == result["test"]


def test_the_metrics_are_those_of_the_saved_student(trained: Trained, examples: pd.DataFrame) -> None:
    _, folder, result = trained
    student = Student.load(folder.student, device="cpu")
    test = examples[examples["split"] == "test"]
    table = pd.read_parquet(folder.predictions).set_index("example_id")
    for example, prediction in zip(test.itertuples(), student.predict(list(test["text"])), strict=True):
        row = table.loc[example.id]
        assert (row["gold"], row["predicted"]) == (example.label, prediction.label)
        assert row["probability_positive"] == pytest.approx(prediction.probabilities["positive"], abs=1e-5)
    assert result["test"]["accuracy"] == pytest.approx((table["gold"] == table["predicted"]).mean())
    assert result["test"]["n"] == 12
    validation = examples[examples["split"] == "validation"]
    right = [p.label == g for p, g in zip(student.predict(list(validation["text"])), validation["label"], strict=True)]
    assert result["validation"]["accuracy"] == pytest.approx(sum(right) / 24)
    assert student.validated is not None
    assert student.validated.right.tolist() == right
    assert pd.read_parquet(folder.validation)["score"].tolist() == student.validated.confidence.tolist()
    best = {point["step"]: point["validation_accuracy"] for point in folder.curve()}
    assert best[result["best_step"]] == max(best.values()) == pytest.approx(sum(right) / 24)


@pytest.mark.integration
def test_a_student_learns_labels_and_rationales(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    """The task is one word's presence: a student that does not learn it is not being trained."""
    trial = make_trial(tiny_t5, "cot_labelled", steps=120, eval_every=120, max_target_tokens=16)
    theirs = dict.fromkeys(examples.loc[examples["split"] == "test", "id"], "The reviewer finds it, all in all, awful.")
    result = train_trial(trial, make_folder(tmp_path / "learns"), examples, annotations, teacher_rationales=theirs)
    assert result["test"]["accuracy"] == 1.0
    assert (result["test"]["n_rationales"], result["test"]["n_rouge_l"]) == (12, 12)
    assert 0.5 < result["test"]["rationale_rouge_l"] < 0.8  # four words in common, of five to seven and eight
    student = Student.load(tmp_path / "learns" / "student", device="cpu")
    warm, dull = student.explain(["A warm and funny film, number 1.", "A dull and lifeless film, number 2."])
    assert warm.startswith("The reviewer finds it warm")
    assert dull.startswith("The reviewer finds it dull")


@pytest.mark.integration
def test_what_is_said_at_the_end_of_long_reviews_is_learned_by_those_who_read_it(
    tiny_t5: Path, example_rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows = example_rows.assign(
        text="Let me begin with who directed it and in which year it was made. " * 3 + example_rows["text"]
    )
    examples = build_examples(rows, "long", SENTIMENT).table
    accuracy = {}
    for truncation in ("head", "head_tail"):
        trial = make_trial(tiny_t5, steps=120, eval_every=120, max_input_tokens=32, truncation=truncation)
        result = train_trial(trial, make_folder(tmp_path / truncation), examples, None)
        assert result["cut_inputs"] == result["train_pairs"] == 24
        accuracy[truncation] = result["test"]["accuracy"]
    assert accuracy == {"head": 0.5, "head_tail": 1.0}
    student = Student.load(tmp_path / "head_tail" / "student", device="cpu")
    assert (student.max_input_tokens, student.tail_tokens) == (32, 24), "it reads as it was trained to"


@pytest.mark.integration
def test_cot_joint_learns_to_reason_and_then_to_answer(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial = make_trial(tiny_t5, "cot_joint", steps=100, eval_every=100, max_target_tokens=24)
    result = train_trial(trial, make_folder(tmp_path / "joint"), examples, annotations)
    assert result["test"]["accuracy"] == 1.0
    student = Student.load(tmp_path / "joint" / "student", device="cpu")
    assert student.can_explain
    (warm,) = student.explain(["A warm and funny film, number 1."])
    assert warm.startswith("The reviewer finds it warm")
    assert "Answer" not in warm
    table = pd.read_parquet(tmp_path / "joint" / "predictions.parquet")
    texts = examples.set_index("id").loc[table["example_id"], "text"]
    assert [p.label for p in student.predict(list(texts))] == table["predicted"].to_list()


def test_rationale_input_is_scored_with_the_teachers_rationales(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, folder = make_trial(tiny_t5, "rationale_input", steps=4), make_folder(tmp_path / "reads")
    assert (trial.truncation, make_trial(tiny_t5).truncation) == ("head", "head_tail"), (
        "the rationale, which is first, stays whole"
    )
    assert trial.id == make_trial(tiny_t5, "rationale_input", steps=4, truncation="head").id
    held_out = examples[examples["split"] != "train"]
    rationales = {i: f"The reviewer finds it {label}." for i, label in zip(held_out["id"], held_out["label"], strict=True)}
    some = {i: why for i, why in rationales.items() if i not in set(held_out["id"][held_out["split"] == "test"].head(2))}
    for given, missing in ((None, "24 of 24 validation examples and 12 of 12 test"), (some, "none for 2 of 12 test examples")):
        with pytest.raises(CotdError, match=rf"{missing}.*teacher\.held_out_rationales: true"):
            train_trial(trial, folder, examples, annotations, teacher_rationales=given)
        assert not folder.checkpoints.exists()
    train_trial(trial, folder, examples, annotations, teacher_rationales=rationales)
    student = Student.load(folder.student, device="cpu")
    assert (student.rationale_as_input, student.can_explain) == (True, False)
    table = pd.read_parquet(folder.predictions)
    texts = examples.set_index("id").loc[table["example_id"], "text"]
    predictions = student.predict(list(texts), [rationales[i] for i in table["example_id"]])
    assert [p.probabilities["positive"] for p in predictions] == pytest.approx(
        table["probability_positive"].to_list(), abs=1e-5
    )


def test_a_fraction_trains_on_its_share(tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path) -> None:
    result = train_trial(make_trial(tiny_t5, fraction=0.25, steps=2), make_folder(tmp_path / "part"), examples, None)
    assert (result["train_examples"], result["train_pairs"], result["steps"]) == (6, 6, 2)


def test_partly_labelled_examples_train(tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path) -> None:
    """As a sweep's worker sees them: read from Parquet, half of the training labels missing."""
    some = examples["split"].eq("train") & (examples.index % 2 == 0)
    examples.assign(label=examples["label"].astype(object).where(~some, None)).to_parquet(tmp_path / "reviews.parquet")
    loaded = pd.read_parquet(tmp_path / "reviews.parquet")
    result = train_trial(make_trial(tiny_t5, steps=2), make_folder(tmp_path / "part"), loaded, None)
    assert result["train_examples"] == 24 - some.sum()


def test_numbers_are_as_before_after_a_training(trained: Trained) -> None:
    """While it trains, denormal numbers count as 0."""
    assert torch.tensor(1e-310, dtype=torch.float64) * 1.0 != 0
