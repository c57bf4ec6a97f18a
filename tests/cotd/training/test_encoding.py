"""What trials share: encoded once, mapped by each, and the same as what a trial would encode by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cotd.data.examples import select_fraction
from cotd.data.spill import SortedRows
from cotd.errors import CotdError
from cotd.students.backends.base import Backend
from cotd.students.backends.choose import make_backend
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.teachers.annotations import KEY, SCHEMA, annotation_row
from cotd.training.config import TrainingConfig
from cotd.training.encoding import EncodedPairs, cached_pairs, encode_here, encode_trial
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.pairs import TARGET_KINDS, training_pairs
from cotd.training.train import train_trial
from cotd.training.trial import Trial
from tests.cotd.training.helpers import encode_pairs
from tests.tasks import SENTIMENT


@pytest.fixture(scope="module")
def annotations(examples: pd.DataFrame) -> pd.DataFrame:
    """Three samples an example, the third with another label; one example's were filtered out, one's went wrong."""
    origin = {"teacher": "double", "revision": "1", "prompt_hash": "p"}
    done = {"finish_reason": "stop", "logprob": -1.0, "prompt_tokens": 1, "output_tokens": 1}
    rows = SortedRows(SCHEMA, KEY)
    for number, example in enumerate(examples[examples["split"] == "train"].itertuples()):
        for sample in range(3):
            label = example.label if sample < 2 else {"positive": "negative", "negative": "positive"}[example.label]
            error = {0: "filtered: length", 1: "the engine ran out of memory"}.get(number)
            why = f"The reviewer says so, for the {sample + 1}. time."
            for by_gold in (False, True):
                rows.add(annotation_row(example.id, sample, by_gold, label, None, why, done, origin, error=error))
    return rows.table()


def make_trial(base: Path, method: str = "cot_unlabelled", **fields: Any) -> Trial:
    training = TrainingConfig(steps=4, batch_size=8, eval_every=2, max_input_tokens=16, max_target_tokens=12)
    return replace(Trial(method, 1.0, "tiny", 0, str(base), training, SENTIMENT.to_dict(), "b", "r", "a"), **fields)


def backend_of(base: Path) -> Backend:
    return make_backend(*load_base(str(base)), SENTIMENT, {})


def encoded(trial: Trial, examples: pd.DataFrame, annotations: pd.DataFrame | None, backend: Backend) -> EncodedPairs:
    return encode_here(partial(encode_trial, trial, examples, annotations, backend))


@pytest.mark.integration
def test_a_trial_on_the_cache_is_the_trial_without_it(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    examples.to_parquet(tmp_path / "reviews.parquet")
    annotations.to_parquet(tmp_path / "annotations.parquet")
    trial = make_trial(tiny_t5, fraction=0.5)
    folders = {name: TrialFolder(tmp_path / name) for name in ("alone", "first", "second")}
    for folder in folders.values():
        folder.path.mkdir()
    cache = tmp_path / "data"
    results = [train_trial(trial, folders["alone"], examples, annotations)]
    results.append(
        train_trial(trial, folders["first"], tmp_path / "reviews.parquet", tmp_path / "annotations.parquet", cache=cache)
    )
    # What was encoded is not encoded again: the annotations are not even read.
    results.append(train_trial(trial, folders["second"], tmp_path / "reviews.parquet", Path("nowhere"), cache=cache))
    assert len(list(cache.glob("pairs-*"))) == 1
    for result in results:
        del result["seconds"], result["train_seconds"]
    assert results[0] == results[1] == results[2]
    weights = [dict(Student.load(f.student, device="cpu").model.named_parameters()) for f in folders.values()]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in other)


@pytest.mark.parametrize("method", ["finetune", "cot_labelled", "cot_joint", "rationale_input"])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_a_fraction_of_what_is_encoded_is_what_is_encoded_of_a_fraction(
    method: str, fraction: float, tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    backend = backend_of(tiny_t5)
    train = examples[examples["split"] == "train"]
    trial = make_trial(tiny_t5, method)
    part = select_fraction(train, fraction)
    mapped = cached_pairs(tmp_path, trial, backend, partial(encode_trial, trial, train, annotations, backend))
    assert isinstance(mapped.tokens, np.memmap)
    rows = mapped.head(len(part))
    alone = encoded(trial, part, annotations, backend)
    assert list(rows) == list(alone)
    assert set(rows.used_verbalizers()) == set(alone.used_verbalizers())
    pairs = training_pairs(METHODS[method], part, annotations, SENTIMENT)
    assert rows.counts() == alone.counts()
    assert rows.counts()["train_pairs"] == len(pairs)
    assert sorted(w for row in rows for kind in TARGET_KINDS for _, _, w in row[kind]) == sorted(pairs["weight"])
    longest = max((len(ids) for row in rows for kind in TARGET_KINDS for ids, _, _ in row[kind]), default=0)
    assert longest <= 16


def rationales(trial: Trial, examples: pd.DataFrame, annotations: pd.DataFrame, backend: Backend) -> list[int]:
    """How many rationales each example is learned with."""
    return [len(row["rationale"]) for row in encoded(trial, examples, annotations, backend)]


def test_samples_and_filters_are_a_trials_own(tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame) -> None:
    backend = backend_of(tiny_t5)

    def count(**fields: Any) -> list[int]:
        return rationales(make_trial(tiny_t5, **fields), examples, annotations, backend)

    assert count() == [0, *[2] * 22], (
        "the third sample has another label; one example is quarantined, and one's rationale filtered"
    )
    assert count(samples=1) == [0, *[1] * 22]
    assert count(filters=[]) == [2] * 23, "what a filter took out is back, what went wrong is not"
    assert count(samples=1, filters=[]) == [1] * 23
    with pytest.raises(CotdError, match="none is usable for these 24 training examples"):
        count(filters=[{"length": {"min_words": 50}}])
    identities = [make_trial(tiny_t5, **f).id for f in ({}, {"samples": 1}, {"filters": []}, {"samples": 1, "filters": []})]
    assert len(set(identities)) == 4


def test_what_is_cut_otherwise_is_encoded_apart(tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path) -> None:
    backend = backend_of(tiny_t5)
    train = examples[examples["split"] == "train"]
    whole = backend.tokenizer(["predict: " + t for t in train["text"]])["input_ids"]
    assert min(map(len, whole)) > 8
    found = {}
    for truncation in ("head", "head_tail"):
        settings = TrainingConfig(max_input_tokens=8, truncation=truncation)
        trial = make_trial(tiny_t5, "finetune", training=settings)
        pairs = cached_pairs(tmp_path, trial, backend, partial(encode_trial, trial, train, None, backend))
        found[truncation] = [row["label"][0][0] for row in pairs[:]]
    assert found == {"head": [[*ids[:7], ids[-1]] for ids in whole], "head_tail": [[*ids[:2], *ids[-6:]] for ids in whole]}


def test_a_cut_off_cache_is_not_taken_for_a_whole_one(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(tiny_t5)
    trial = make_trial(tiny_t5)
    encode = partial(encode_trial, trial, examples, annotations, backend)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cotd.training.encoding.write_json", fails)
        with pytest.raises(OSError, match="No space"):
            cached_pairs(tmp_path, trial, backend, encode)
    assert not [p for p in tmp_path.glob("pairs-*") if not p.name.endswith(".part")]
    assert list(cached_pairs(tmp_path, trial, backend, encode)) == list(encode_here(encode))


def test_rationales_are_cut_to_the_limit_and_end(tiny_t5: Path) -> None:
    backend = backend_of(tiny_t5)
    tokenizer = backend.tokenizer
    pairs = pd.DataFrame([("r", "film " * 50, "warm " * 50, "rationale", 1.0)])
    pairs.columns = ["example_id", "text", "target", "target_kind", "weight"]
    ((source, target, _),) = encode_pairs(pairs, backend, 16, 8)[0]["rationale"]
    assert (len(source), len(target)) == (16, 8)
    assert source[-1] == target[-1] == tokenizer.eos_token_id
    ((_, target, _),) = encode_pairs(pairs.assign(target_kind="label"), backend, 16, 8)[0]["label"]
    assert len(target) > 50, "answers are scored whole"
    row = encode_pairs(pairs, backend, 16, 64)[0]
    assert (row["cut_inputs"], row["cut_targets"]) == (1, 0)
    joint = pairs.assign(target="warm " * 50 + " Answer: positive", target_kind="joint")
    ((_, target, _),) = encode_pairs(joint, backend, 16, 16)[0]["joint"]
    assert len(target) == 16
    assert tokenizer.decode(target, skip_special_tokens=True).endswith("warm Answer: positive")
