"""Training on the real path, of a tiny random T5 on two dozen reviews."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.data.examples import build_examples
from cotd.errors import CotdError
from cotd.students.backends.t5.packed import run_block, token_states
from cotd.students.base_models import load_base
from cotd.students.student import Prediction, Student
from cotd.tasks.registry import SENTIMENT
from cotd.teachers.annotations import AnnotationRows, annotation_row
from cotd.training.checkpoints import latest_checkpoint
from cotd.training.collate import collate, multi_task_loss, padded_logits
from cotd.training.config import TrainingConfig
from cotd.training.encoding import encode_pairs
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.train import train_trial
from cotd.training.trial import Trial

SETTINGS = {
    "optimizer": "adamw",
    "steps": 8,
    "batch_size": 8,
    "eval_every": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "dropout": 0.0,
}


# Predictions of test reviews, for what does not look at them.
SCORED = {
    "review_id": ["a", "b"], "gold": ["positive", "negative"], "predicted": ["positive", "negative"],
    "probability_positive": [0.9, 0.1], "probability_negative": [0.1, 0.9], "truncated": [False, False],
}  # fmt: skip


@pytest.fixture(scope="module")
def reviews(review_rows: pd.DataFrame) -> pd.DataFrame:
    return build_examples(review_rows, "small", SENTIMENT).table


@pytest.fixture(scope="module")
def annotations(reviews: pd.DataFrame) -> pd.DataFrame:
    """Right labels, and rationales of different lengths."""
    origin = {"teacher": "double", "revision": "1", "prompt_hash": "p"}
    done = {"finish_reason": "stop", "logprob": -1.0, "prompt_tokens": 1, "output_tokens": 1}
    rows = AnnotationRows()
    for number, review in enumerate(reviews[reviews["split"] == "train"].itertuples()):
        why = f"The reviewer finds it {'warm' if review.label == 'positive' else 'dull'}{' indeed' * (number % 3)}."
        for by_gold in (False, True):
            rows.add(annotation_row(review.id, 0, by_gold, review.label, None, why, done, origin))
    return rows.table()


def make_trial(base: Path, method: str = "finetune", fraction: float = 1.0, seed: int = 0, **settings: Any) -> Trial:
    training = TrainingConfig(**{**SETTINGS, **settings})
    return Trial(method, fraction, "tiny", seed, str(base), training, "sentiment", "b", "r", "a")


def make_folder(path: Path) -> TrialFolder:
    path.mkdir(parents=True)
    return TrialFolder(path)


def parameters(folder: TrialFolder) -> dict[str, torch.Tensor]:
    return dict(Student.load(folder.student, device="cpu").model.named_parameters())


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if "seconds" not in k and k != "time"}


def loss_by_hand(model: Any, tokenizer: Any, pairs: pd.DataFrame, prompt: Sequence[int] = ()) -> float:
    """Mean -log p of the target tokens after the decoder's prompt, a pair at a time, without padding."""
    total, count = 0.0, 0
    for pair in pairs.itertuples():
        source = torch.tensor([tokenizer(pair.input)["input_ids"]])
        target = tokenizer(pair.target)["input_ids"]
        shifted = torch.tensor([[0, *prompt, *target[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=source, decoder_input_ids=shifted).logits[0, len(prompt) :]
        log_p = torch.log_softmax(logits.double(), dim=-1)
        total -= sum(float(log_p[i, token]) for i, token in enumerate(target))
        count += len(target)
    return total / count


def loss_of(model: Any, pairs: pd.DataFrame, tokenizer: Any, at_once: int | None) -> float:
    batch = collate(encode_pairs(pairs, tokenizer, 64, 64), model.config.decoder_start_token_id, at_once)
    return sum(multi_task_loss(model, part, batch["totals"]).item() for part in batch["parts"])


@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_loss_is_label_plus_lambda_rationale(
    weight: float, at_once: int | None, tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    train = reviews[reviews["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT, weight)
    label, rationale = (loss_by_hand(model, tokenizer, pairs[pairs["task"] == t]) for t in ("label", "rationale"))
    assert loss_of(model, pairs, tokenizer, at_once) == pytest.approx(label + weight * rationale, rel=1e-5)
    for method in ("finetune", "cot_joint"):  # one target a review: λ weighs nothing
        pairs = training_pairs(METHODS[method], train, annotations, SENTIMENT, weight)
        assert loss_of(model, pairs, tokenizer, at_once) == pytest.approx(loss_by_hand(model, tokenizer, pairs), rel=1e-5)


@pytest.mark.parametrize(
    ("version", "checkpointing", "fewest"), [("v1.0", False, 0), ("v1.1", False, 0), ("v1.1", True, 0), ("v1.0", False, 2**14)]
)
def test_packed_sequences_give_the_logits_and_gradients_of_the_models_own_forward(
    version: str, checkpointing: bool, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many groups of rows as there are lengths, and with one."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    kind = (
        {"feed_forward_proj": "relu"}
        if version == "v1.0"
        else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    )
    model = T5ForConditionalGeneration(T5Config(**shape, **kind, dropout_rate=0.0, decoder_start_token_id=0)).eval()
    computed: list[Any] = []
    monkeypatch.setattr(
        "cotd.students.backends.t5.packed.run_block", lambda *given: computed.append(given) or run_block(*given)
    )
    monkeypatch.setattr("cotd.students.backends.t5.packed.FEWEST_SCORES", fewest)
    if checkpointing:
        model.gradient_checkpointing_enable()
    lengths, target_lengths = torch.tensor([40, 38, 5, 1]), torch.tensor([25, 25, 20, 2, 4, 1])
    sources = torch.tensor([0, 3, 1, 2, 3, 3])
    inputs, targets = (torch.randint(2, 99, (int(n.sum()),)) for n in (lengths, target_lengths))
    found = []
    for packed in (True, False):
        model.train(packed)
        given = (model, inputs, lengths, sources, targets, target_lengths, targets > 9)
        logits = model.lm_head(token_states(*given)) if packed else padded_logits(*given)
        model.zero_grad()
        logits.square().mean().backward()
        found.append([logits, *(p.grad.clone() for p in model.parameters())])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5 * float(padded.abs().max()))
    assert len(computed) == (8 if checkpointing else 4)


def test_a_batch_in_parts_trains_the_same(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    exact = {"precision": "float32"}  # sums of bfloat16 gradients differ
    whole = make_trial(tiny_t5, "cot_labelled", **exact)
    parts = make_trial(tiny_t5, "cot_labelled", micro_batch_size=3, gradient_checkpointing=True, **exact)
    assert whole.id == parts.id
    folders = [make_folder(tmp_path / name) for name in ("whole", "parts")]
    for trial, folder in zip((whole, parts), folders, strict=True):
        train_trial(trial, folder, reviews, annotations)
    expected = parameters(folders[0])
    for name, value in parameters(folders[1]).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


def test_the_weight_of_rationales_may_fall_to_nothing(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    settings = {"steps": 4, "eval_every": 4, "precision": "float32", "learning_rate": 1e-2, "rationale_weight": 2.0}
    falling = make_trial(tiny_t5, "cot_labelled", **settings, rationale_schedule="linear")
    assert [falling.training.rationale_weight_left(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = make_trial(tiny_t5, "cot_labelled", **settings)
    assert falling.id != constant.id
    assert make_trial(tiny_t5, rationale_schedule="linear").id == make_trial(tiny_t5).id, "finetune has no rationales"

    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    pairs = training_pairs(METHODS["cot_labelled"], reviews[reviews["split"] == "train"].head(5), annotations, SENTIMENT, 2.0)
    batch = collate(encode_pairs(pairs, tokenizer, 64, 64), 0)
    label = loss_by_hand(model, tokenizer, pairs[pairs["task"] == "label"])
    rationale = loss_by_hand(model, tokenizer, pairs[pairs["task"] == "rationale"])
    lost = multi_task_loss(model, batch["parts"][0], batch["totals"], 0.0, 0.25).item()
    assert lost == pytest.approx(label + 0.25 * 2 * rationale, rel=1e-5)

    learnt = {}
    for name, trial in {"falling": falling, "constant": constant}.items():
        folder = make_folder(tmp_path / name)
        train_trial(trial, folder, reviews, annotations)
        learnt[name] = parameters(folder)
    assert any(not torch.equal(value, learnt["constant"][key]) for key, value in learnt["falling"].items())


def test_a_shared_encoder_reads_a_review_once_and_the_decoder_is_told_what_to_write(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    train = reviews[reviews["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT, 2.0, shared_encoder=True)
    asked = tokenizer(SENTIMENT.rationale_prefix, add_special_tokens=False)["input_ids"]
    label = loss_by_hand(model, tokenizer, pairs[pairs["task"] == "label"])
    rationale = loss_by_hand(model, tokenizer, pairs[pairs["task"] == "rationale"], asked)
    batch = collate(encode_pairs(pairs, tokenizer, 64, 64), 0, rationale_prompt=asked)
    (part,) = batch["parts"]
    assert len(part["input_lengths"]) == len(train)
    assert multi_task_loss(model, part, batch["totals"]).item() == pytest.approx(label + 2 * rationale, rel=1e-5)

    folder, apart = make_folder(tmp_path / "shared"), make_trial(tiny_t5, "cot_labelled", steps=60, eval_every=60)
    trial = make_trial(tiny_t5, "cot_labelled", steps=60, eval_every=60, shared_encoder=True)
    assert trial.id != apart.id
    assert make_trial(tiny_t5, shared_encoder=True).id == make_trial(tiny_t5).id, "finetune has nothing to share"
    train_trial(trial, folder, reviews, annotations)
    student, heard = Student.load(folder.student, device="cpu"), []
    text = train["text"].iloc[0]
    (written,) = student.explain([text])
    student.stream_rationale(text, heard.append)
    assert written.startswith("The reviewer finds it")
    assert "".join(heard).strip() == written


def test_targets_are_cut_to_the_limit_and_end(tiny_t5: Path) -> None:
    _, tokenizer = load_base(str(tiny_t5))
    pairs = pd.DataFrame([("r", "predict: " + "film " * 50, "warm " * 50, "label", 1.0)])
    pairs.columns = ["review_id", "input", "target", "task", "weight"]
    ((source, target, _),) = encode_pairs(pairs, tokenizer, 16, 8)[0]["label"]
    assert (len(source), len(target)) == (16, 8)
    assert source[-1] == target[-1] == tokenizer.eos_token_id
    row = encode_pairs(pairs, tokenizer, 16, 64)[0]
    assert (row["cut_inputs"], row["cut_targets"]) == (1, 0)
    joint = pairs.assign(target="warm " * 50 + "Answer: positive", task="joint")
    ((_, target, _),) = encode_pairs(joint, tokenizer, 16, 16)[0]["joint"]
    assert len(target) == 16
    assert tokenizer.decode(target, skip_special_tokens=True).endswith("warm Answer: positive")


def test_lambda_zero_trains_what_finetune_trains(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folders = {name: make_folder(tmp_path / name) for name in ("finetune", "zero", "half")}
    # Both methods round alike up to the order of their sums, which processors without AVX-512 have otherwise; larger steps would
    # have Adam magnify that.
    steps = {"steps": 50, "eval_every": 50, "precision": "float32", "max_target_tokens": 16, "learning_rate": 5e-4}
    train_trial(make_trial(tiny_t5, **steps), folders["finetune"], reviews, None)
    train_trial(make_trial(tiny_t5, "cot_labelled", **steps, rationale_weight=0), folders["zero"], reviews, annotations)
    train_trial(make_trial(tiny_t5, "cot_labelled", **steps, rationale_weight=0.5), folders["half"], reviews, annotations)
    expected, half, base = parameters(folders["finetune"]), parameters(folders["half"]), load_base(str(tiny_t5))[0]
    for name, value in parameters(folders["zero"]).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert max(float((half[name] - expected[name]).abs().max()) for name in half) > 1e-3
    assert any(not torch.equal(value, expected[name]) for name, value in base.named_parameters())


@pytest.fixture(scope="module")
def trained(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trial, TrialFolder, dict[str, Any]]:
    """A finished trial, trained with dropout and in bfloat16, its folder and its result."""
    trial = make_trial(tiny_t5, "cot_unlabelled", dropout=0.1, precision="bfloat16")
    folder = make_folder(tmp_path_factory.mktemp("trials") / trial.id)
    return trial, folder, train_trial(trial, folder, reviews, annotations, {"teacher": {"model": "double"}})


Trained = tuple[Trial, TrialFolder, dict[str, Any]]


def test_a_trial_trained_twice_gives_the_same(
    trained: Trained, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, folder, result = trained
    again = make_folder(tmp_path / "again")
    assert timeless(train_trial(trial, again, reviews, annotations)) == timeless(result)
    assert [*map(timeless, again.curve())] == [*map(timeless, folder.curve())]
    first, second = parameters(folder), parameters(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_student(
    trained: Trained, tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "seed")
    train_trial(make_trial(tiny_t5, "cot_unlabelled", dropout=0.1, precision="bfloat16", seed=1), folder, reviews, annotations)
    first, second = parameters(trained[1]), parameters(folder)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_finished_trials_folder(trained: Trained, reviews: pd.DataFrame) -> None:
    _, folder, result = trained
    assert folder.done
    assert folder.result() == result
    assert sorted(p.name for p in folder.path.iterdir()) == ["metrics.jsonl", "predictions.parquet", "result.json", "student"]
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]
    assert not [p for p in folder.student.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    card = json.loads((folder.student / "cotd.json").read_text())
    assert card["method"] == "cot_unlabelled"
    assert card["teacher"] == {"model": "double"}
    assert card["metrics"]["test"] == result["test"]


def test_the_metrics_are_those_of_the_saved_student(trained: Trained, reviews: pd.DataFrame) -> None:
    _, folder, result = trained
    student = Student.load(folder.student, device="cpu")
    test = reviews[reviews["split"] == "test"]
    table = pd.read_parquet(folder.predictions).set_index("review_id")
    for review, prediction in zip(test.itertuples(), student.predict(list(test["text"])), strict=True):
        row = table.loc[review.id]
        assert (row["gold"], row["predicted"]) == (review.label, prediction.label)
        assert row["probability_positive"] == pytest.approx(prediction.probabilities["positive"], abs=1e-5)
    assert result["test"]["accuracy"] == pytest.approx((table["gold"] == table["predicted"]).mean())
    assert result["test"]["n"] == 12
    validation = reviews[reviews["split"] == "validation"]
    right = [p.label == g for p, g in zip(student.predict(list(validation["text"])), validation["label"], strict=True)]
    assert result["validation"]["accuracy"] == pytest.approx(sum(right) / 24)
    best = {point["step"]: point["validation_accuracy"] for point in folder.curve()}
    assert best[result["best_step"]] == max(best.values()) == pytest.approx(sum(right) / 24)


def train_killed_and_resumed(
    killed_at: int, trial: Trial, folder: TrialFolder, reviews: pd.DataFrame, annotations: pd.DataFrame | None
) -> list[float]:
    """Stops a trial as it scores a step, trains it again, and returns the steps that the second attempt scored."""

    def kill(point: dict[str, float]) -> None:
        if point["step"] == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(trial, folder, reviews, annotations, on_score=kill)
    assert not folder.done
    resumed: list[float] = []
    train_trial(trial, folder, reviews, annotations, on_score=lambda point: resumed.append(point["step"]))
    return resumed


@pytest.mark.parametrize("killed_at", [2, 6], ids=["before its first checkpoint", "after two checkpoints"])
def test_a_killed_trial_goes_on_from_its_checkpoint_and_finishes(
    killed_at: int, trained: Trained, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, _, result = trained
    folder = make_folder(tmp_path / "killed")
    resumed = train_killed_and_resumed(killed_at, trial, folder, reviews, annotations)
    # The step it was killed at was scored before its checkpoint was written, and is trained again.
    assert resumed == list(range(killed_at, 9, 2))
    assert folder.done
    assert not folder.checkpoints.exists()
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]
    assert folder.result().keys() == result.keys()
    assert folder.result()["steps"] == 8


def test_a_resumed_trial_is_the_trial_that_was_never_stopped(
    trained: Trained, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    """Its id says what was trained on what, not whether a machine went away meanwhile. Step 6 is in the second epoch."""
    trial, whole, result = trained
    folder = make_folder(tmp_path / "killed")
    train_killed_and_resumed(6, trial, folder, reviews, annotations)
    assert [*map(timeless, folder.curve())] == [*map(timeless, whole.curve())]
    assert timeless(folder.result()) == timeless(result)


class ScriptedScores:
    """Has validation scores be what a test needs, and keeps the weights that were scored.

    Attributes:
        scored: the weights of each scoring so far.
    """

    def __init__(self, reviews: pd.DataFrame, right: Sequence[int]):
        """Args: right: how many of the 24 validation reviews each scoring in turn finds right."""
        held_out = reviews[reviews["split"] == "validation"]
        self.gold, self.right = list(held_out["label"]), right
        self.scored: list[dict[str, torch.Tensor]] = []

    def __call__(self, student: Student, texts: Sequence[str], *_: Any) -> list[Prediction]:
        self.scored.append({name: p.detach().clone() for name, p in student.model.named_parameters()})
        right = self.right[len(self.scored) - 1]
        other = {"positive": "negative", "negative": "positive"}
        labels = [gold if i < right else other[gold] for i, gold in enumerate(self.gold)]
        return [Prediction(label, 1.0, dict.fromkeys(other, 0.5), False) for label in labels]


def test_what_is_scored_and_kept_may_be_the_average_of_the_weights(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"schedule": "constant_with_warmup"}

    def weights_after(steps: int) -> dict[str, torch.Tensor]:
        folder = make_folder(tmp_path / str(steps))
        train_trial(make_trial(tiny_t5, steps=steps, eval_every=99, **settings), folder, reviews, None)
        return parameters(folder)

    def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in b)

    average = dict(load_base(str(tiny_t5))[0].named_parameters())
    averages, trained = [], []
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 0.3), (4, 0.3)):
        trained.append(weights_after(step))
        average = {name: (decay * p + (1 - decay) * trained[-1][name]).detach() for name, p in average.items()}
        averages.append(average)
    scores = ScriptedScores(reviews, [12, 20, 16, 16])  # the second is the best
    folder = make_folder(tmp_path / "averaged")
    with monkeypatch.context() as patch:
        patch.setattr(Student, "predict", lambda *given: scores(*given))
        patch.setattr("cotd.training.train.predictions_table", lambda *_: pd.DataFrame(SCORED))
        result = train_trial(make_trial(tiny_t5, weight_average=0.3, **settings), folder, reviews, None)
    assert result["best_step"] == 4
    assert close(scores.scored[0], averages[1])
    assert close(scores.scored[1], averages[3])
    assert close(parameters(folder), averages[3])
    assert not close(trained[3], averages[3])


def test_a_resumed_average_is_the_one_that_was_never_stopped(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(tiny_t5, weight_average=0.9)
    whole, killed = make_folder(tmp_path / "whole"), make_folder(tmp_path / "killed")
    for folder in (whole, killed):
        scores = ScriptedScores(reviews, range(12, 24))  # each is better than the one before, so that the last is kept
        with monkeypatch.context() as patch:
            patch.setattr(Student, "predict", lambda *given, scores=scores: scores(*given))
            patch.setattr("cotd.training.train.predictions_table", lambda *_: pd.DataFrame(SCORED))
            if folder is whole:
                train_trial(trial, whole, reviews, None)
            else:
                assert train_killed_and_resumed(6, trial, killed, reviews, None) == [6, 8]
        assert folder.result()["best_step"] == 8
    assert all(torch.equal(a, parameters(killed)[name]) for name, a in parameters(whole).items())


def test_a_trial_that_goes_on_elsewhere_still_knows_its_best_checkpoint(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is not the best, and nothing is left to train that would find a better one."""
    trial, here = make_trial(tiny_t5, weight_average=0.9), make_folder(tmp_path / "here")
    scores = ScriptedScores(reviews, [12, 20, 16, 16, 0])
    monkeypatch.setattr("cotd.training.train.predictions_table", lambda *_: pd.DataFrame(SCORED))
    with monkeypatch.context() as patch:
        patch.setattr(Student, "predict", lambda *given: scores(*given))
        patch.setattr("cotd.training.train.fit_temperature", lambda *_: pytest.fail("the machine goes away"))
        with pytest.raises(pytest.fail.Exception, match="goes away"):
            train_trial(trial, here, reviews, None)
    here.path.rename(tmp_path / "there")
    there = TrialFolder(tmp_path / "there")
    assert train_trial(trial, there, reviews, None)["best_step"] == 4
    kept = parameters(there)
    assert all(torch.equal(p, scores.scored[1][name]) for name, p in kept.items())


def test_a_student_learns_labels_and_rationales(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    """The task is one word's presence: a student that does not learn it is not being trained."""
    trial = make_trial(tiny_t5, "cot_labelled", steps=80, eval_every=80, max_target_tokens=16)
    theirs = dict.fromkeys(reviews.loc[reviews["split"] == "test", "id"], "The reviewer finds it, all in all, awful.")
    result = train_trial(trial, make_folder(tmp_path / "learns"), reviews, annotations, teacher_rationales=theirs)
    assert result["test"]["accuracy"] == 1.0
    assert (result["test"]["n_rationales"], result["test"]["n_rouge_l"]) == (12, 12)
    assert 0.5 < result["test"]["rationale_rouge_l"] < 0.8  # four words in common, of five to seven and eight
    student = Student.load(tmp_path / "learns" / "student", device="cpu")
    warm, dull = student.explain(["A warm and funny film, number 1.", "A dull and lifeless film, number 2."])
    assert warm.startswith("The reviewer finds it warm")
    assert dull.startswith("The reviewer finds it dull")


def test_what_is_said_at_the_end_of_long_reviews_is_learned_by_those_who_read_it(
    tiny_t5: Path, review_rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows = review_rows.assign(
        text="Let me begin with who directed it and in which year it was made. " * 3 + review_rows["text"]
    )
    reviews = build_examples(rows, "long", SENTIMENT).table
    accuracy = {}
    for truncation in ("head", "head_tail"):
        trial = make_trial(tiny_t5, steps=80, eval_every=80, max_input_tokens=32, truncation=truncation)
        result = train_trial(trial, make_folder(tmp_path / truncation), reviews, None)
        assert result["cut_inputs"] == result["train_pairs"] == 24
        accuracy[truncation] = result["test"]["accuracy"]
    assert accuracy == {"head": 0.5, "head_tail": 1.0}
    student = Student.load(tmp_path / "head_tail" / "student", device="cpu")
    assert (student.max_input_tokens, student.tail_tokens) == (32, 24), "it reads as it was trained to"


def test_cot_joint_learns_to_reason_and_then_to_answer(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial = make_trial(tiny_t5, "cot_joint", steps=100, eval_every=100, max_target_tokens=24)
    result = train_trial(trial, make_folder(tmp_path / "joint"), reviews, annotations)
    assert result["test"]["accuracy"] == 1.0
    student = Student.load(tmp_path / "joint" / "student", device="cpu")
    assert student.can_explain
    (warm,) = student.explain(["A warm and funny film, number 1."])
    assert warm.startswith("The reviewer finds it warm")
    assert "Answer" not in warm
    table = pd.read_parquet(tmp_path / "joint" / "predictions.parquet")
    texts = reviews.set_index("id").loc[table["review_id"], "text"]
    assert [p.label for p in student.predict(list(texts))] == table["predicted"].to_list()


def test_rationale_input_is_scored_with_the_teachers_rationales(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, folder = make_trial(tiny_t5, "rationale_input", steps=4), make_folder(tmp_path / "reads")
    assert (trial.truncation, make_trial(tiny_t5).truncation) == ("head", "head_tail"), (
        "the rationale, which is first, stays whole"
    )
    assert trial.id == make_trial(tiny_t5, "rationale_input", steps=4, truncation="head").id
    held_out = reviews[reviews["split"] != "train"]
    rationales = {i: f"The reviewer finds it {label}." for i, label in zip(held_out["id"], held_out["label"], strict=True)}
    some = {i: why for i, why in rationales.items() if i not in set(held_out["id"][held_out["split"] == "test"].head(2))}
    for given, missing in ((None, "24 of 24 validation reviews and 12 of 12 test"), (some, "none for 2 of 12 test reviews")):
        with pytest.raises(CotdError, match=rf"{missing}.*teacher\.held_out_rationales: true"):
            train_trial(trial, folder, reviews, annotations, teacher_rationales=given)
        assert not folder.checkpoints.exists()
    train_trial(trial, folder, reviews, annotations, teacher_rationales=rationales)
    student = Student.load(folder.student, device="cpu")
    assert (student.rationale_as_input, student.can_explain) == (True, False)
    table = pd.read_parquet(folder.predictions)
    texts = reviews.set_index("id").loc[table["review_id"], "text"]
    predictions = student.predict(list(texts), [rationales[i] for i in table["review_id"]])
    assert [p.probabilities["positive"] for p in predictions] == pytest.approx(
        table["probability_positive"].to_list(), abs=1e-5
    )


def test_a_loss_that_is_no_number_stops_the_trial_and_keeps_the_last_good_checkpoint(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = 0

    def spoilt_from_the_fourth(*arguments: Any) -> torch.Tensor:
        nonlocal losses
        losses += 1
        return multi_task_loss(*arguments) * (float("nan") if losses > 3 else 1.0)

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", spoilt_from_the_fourth)
    folder = make_folder(tmp_path / "nan")
    with pytest.raises(CotdError, match=r"the loss is not a number at step 4 on the reviews (\w{16}, ){7}\w{16}\.") as caught:
        train_trial(make_trial(tiny_t5), folder, reviews, None)
    assert "training.learning_rate" in str(caught.value)
    train = set(reviews.loc[reviews["split"] == "train", "id"])
    assert len(train & set(re.findall(r"\w{16}", str(caught.value)))) == 8
    assert [p.name for p in folder.checkpoints.iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    train_trial(make_trial(tiny_t5), folder, reviews, None)
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]


def test_spoilt_weights_are_never_a_checkpoint(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step may be a number and its gradient none."""

    def without_gradient(model: Any, *arguments: Any) -> torch.Tensor:
        return multi_task_loss(model, *arguments) + (0 * next(model.parameters()).sum()).sqrt()

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", without_gradient)
    folder = make_folder(tmp_path / "spoilt")
    with pytest.raises(CotdError, match="a validation score is not a number at step 1"):
        train_trial(make_trial(tiny_t5, steps=4, eval_every=1), folder, reviews, None)
    assert not list(folder.checkpoints.glob("checkpoint-*"))


def test_a_gpu_out_of_memory_says_what_to_lower(
    tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", exhausted)
    with pytest.raises(CotdError, match=r"out of memory at step 1 .*training\.micro_batch_size lower \(now 8\)"):
        train_trial(make_trial(tiny_t5), make_folder(tmp_path / "oom"), reviews, None)


def test_one_label_alone_is_not_trained_on_or_selected_by(
    tiny_t5: Path, reviews: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "one")
    one = reviews.assign(label="positive")
    with pytest.raises(CotdError) as caught:
        train_trial(make_trial(tiny_t5, "cot_labelled"), folder, one, annotations)
    assert len(caught.value.problems) == 2
    assert "have the label 'positive'" in caught.value.problems[0]
    assert "the validation split" in caught.value.problems[1]
    agreeing = annotations.assign(label="negative")
    for method in ("distill", "cot_joint_unlabelled"):
        with pytest.raises(CotdError, match=f"24 reviews that '{method}' would train on .* the label 'negative'"):
            train_trial(make_trial(tiny_t5, method), folder, reviews, agreeing)
    assert not folder.checkpoints.exists()


def test_a_fraction_trains_on_its_share(tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    result = train_trial(make_trial(tiny_t5, fraction=0.25, steps=2), make_folder(tmp_path / "part"), reviews, None)
    assert (result["train_reviews"], result["train_pairs"], result["steps"]) == (6, 6, 2)


def test_partly_labelled_reviews_train(tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    """As a sweep's worker sees them: read from Parquet, half of the training labels missing."""
    some = reviews["split"].eq("train") & (reviews.index % 2 == 0)
    reviews.assign(label=reviews["label"].astype(object).where(~some, None)).to_parquet(tmp_path / "reviews.parquet")
    loaded = pd.read_parquet(tmp_path / "reviews.parquet")
    result = train_trial(make_trial(tiny_t5, steps=2), make_folder(tmp_path / "part"), loaded, None)
    assert result["train_reviews"] == 24 - some.sum()


def test_a_method_without_its_annotations_fails_before_training(tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "none")
    with pytest.raises(CotdError, match="'distill' needs annotations"):
        train_trial(make_trial(tiny_t5, "distill"), folder, reviews, None)
    assert not folder.done
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("file", ["metrics.jsonl", "predictions.parquet"])
def test_a_full_disk_is_named_and_leaves_nothing_that_counts_as_done(
    file: str, tiny_t5: Path, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    """/dev/full says of every write that there is no space, as a full disk does."""
    folder = make_folder(tmp_path / "full")
    (folder.path / file).symlink_to("/dev/full")
    with pytest.raises(CotdError, match=rf"no space is left where {folder.path} lies"):
        train_trial(make_trial(tiny_t5, steps=2), folder, reviews, None)
    assert not folder.done
    (folder.path / file).unlink()
    train_trial(make_trial(tiny_t5, steps=2), folder, reviews, None)
    assert folder.done


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_st'), (6, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-8").mkdir()
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
