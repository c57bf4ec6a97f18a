"""What stops a trial, and what it says and leaves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.errors import CotdError
from cotd.students.backends.base import Backend
from cotd.training.collate import multi_task_loss
from cotd.training.train import train_trial
from tests.cotd.training.helpers import (
    make_folder,
    make_trial,
)

pytestmark = pytest.mark.thorough


def test_a_loss_that_is_not_a_number_stops_the_trial_and_keeps_the_last_good_checkpoint(
    tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = 0

    def spoilt_from_the_fourth(*arguments: Any) -> torch.Tensor:
        nonlocal losses
        losses += 1
        return multi_task_loss(*arguments) * (float("nan") if losses > 3 else 1.0)

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", spoilt_from_the_fourth)
    folder = make_folder(tmp_path / "nan")
    with pytest.raises(CotdError, match=r"the loss is not a number at step 4 on the examples (\w{16}, ){7}\w{16}\.") as caught:
        train_trial(make_trial(tiny_t5), folder, examples, None)
    assert "training.learning_rate" in str(caught.value)
    train = set(examples.loc[examples["split"] == "train", "id"])
    assert len(train & set(re.findall(r"\w{16}", str(caught.value)))) == 8
    assert [p.name for p in folder.checkpoints.iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    train_trial(make_trial(tiny_t5), folder, examples, None)
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]


def test_spoilt_weights_are_never_a_checkpoint(
    tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step may be a number and its gradient none."""

    def without_gradient(backend: Backend, *arguments: Any) -> torch.Tensor:
        return multi_task_loss(backend, *arguments) + (0 * next(backend.model.parameters()).sum()).sqrt()

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", without_gradient)
    folder = make_folder(tmp_path / "spoilt")
    with pytest.raises(CotdError, match="a validation score is not a number at step 1"):
        train_trial(make_trial(tiny_t5, steps=4, eval_every=1), folder, examples, None)
    assert not list(folder.checkpoints.glob("checkpoint-*"))


def test_a_gpu_out_of_memory_says_what_to_lower(
    tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("cotd.training.trainer.multi_task_loss", exhausted)
    with pytest.raises(CotdError, match=r"out of memory at step 1 .*training\.micro_batch_size lower \(now 8\)"):
        train_trial(make_trial(tiny_t5), make_folder(tmp_path / "oom"), examples, None)


def test_one_label_alone_is_not_trained_on_or_selected_by(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "one")
    one = examples.assign(label="positive")
    with pytest.raises(CotdError) as caught:
        train_trial(make_trial(tiny_t5, "cot_labelled"), folder, one, annotations)
    assert len(caught.value.problems) == 2
    assert "have the label 'positive'" in caught.value.problems[0]
    assert "the validation split" in caught.value.problems[1]
    agreeing = annotations.assign(label="negative")
    for method in ("distill", "cot_joint_unlabelled"):
        with pytest.raises(CotdError, match=f"24 examples that '{method}' would train on .* the label 'negative'"):
            train_trial(make_trial(tiny_t5, method), folder, examples, agreeing)
    assert not folder.checkpoints.exists()


def test_a_method_without_its_annotations_fails_before_training(tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "none")
    with pytest.raises(CotdError, match="'distill' needs annotations"):
        train_trial(make_trial(tiny_t5, "distill"), folder, examples, None)
    assert not folder.done
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("file", ["metrics.jsonl", "predictions.parquet"])
def test_a_full_disk_is_named_and_leaves_nothing_that_counts_as_done(
    file: str, tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path
) -> None:
    """/dev/full says of every write that there is no space, as a full disk does."""
    folder = make_folder(tmp_path / "full")
    (folder.path / file).symlink_to("/dev/full")
    with pytest.raises(CotdError, match=f"no space is left on the disk: {folder.path}"):
        train_trial(make_trial(tiny_t5, steps=2), folder, examples, None)
    assert not folder.done
    (folder.path / file).unlink()
    train_trial(make_trial(tiny_t5, steps=2), folder, examples, None)
    assert folder.done
