"""Two processes that train one student together, as Ray Train's workers do, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.students.backends.choose import make_backend
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.training.collate import collate, multi_task_loss
from cotd.training.distributed import BUCKET_SIZE, buckets, sum_gradients
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.train import train_trial
from cotd.training.trainer import StudentTrainer
from cotd.training.trial import Trial
from tests.cotd.training.helpers import encode_pairs, make_folder, make_trial, parameters, timeless
from tests.processes import free_port
from tests.tasks import SENTIMENT

# 24 examples: the second batch of each epoch is a single one, of which the second worker has nothing.
SETTINGS = {"batch_size": 23, "learning_rate": 1e-3, "precision": "float32"}


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_the_workers_shares_of_a_batch_are_the_batch(
    workers: int, tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    train = examples[examples["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT)
    backend = make_backend(model, tokenizer, SENTIMENT, {})
    rows = encode_pairs(pairs, backend, 64, 64)
    batch = collate(rows, backend)
    shares = [collate(rows, backend, 2, worker=(rank, workers)) for rank in range(workers)]
    reviewed = [i for share in shares for part in share["parts"] for i in part["example_ids"]]
    assert sorted(reviewed) == sorted(i for part in batch["parts"] for i in part["example_ids"])
    assert all(torch.equal(share["totals"], batch["totals"]) for share in shares)
    losses = [multi_task_loss(backend, part, share["totals"]).item() for share in shares for part in share["parts"]]
    whole = multi_task_loss(backend, batch["parts"][0], batch["totals"]).item()
    assert sum(losses) == pytest.approx(whole, rel=1e-5)


def test_what_is_sent_together_is_bounded_and_in_order() -> None:
    tensors = [torch.empty(n, device="meta") for n in (3, BUCKET_SIZE - 3, 1, BUCKET_SIZE + 1, 2)]
    assert [[t.numel() for t in bucket] for bucket in buckets(tensors)] == [[3, BUCKET_SIZE - 3], [1], [BUCKET_SIZE + 1], [2]]


def as_worker(
    rank: int, port: int, trial: Trial, folders: list[Path], examples: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    """One of two workers with a folder each: adds up a gradient, then trains, is stopped at a score, and trains on."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    torch.distributed.init_process_group("gloo")
    used, unused, frozen = (torch.nn.Parameter(torch.ones(2, 2), requires_grad=i < 2) for i in range(3))
    used.grad = torch.full((2, 2), float(rank + 1))
    if rank == 0:
        unused.grad = torch.ones(2, 2)
    loss = torch.tensor(0.5)
    sum_gradients([used, unused, frozen], loss)
    assert (used.grad.unique().item(), unused.grad.unique().item(), frozen.grad, loss.item()) == (3, 1, None, 1)
    first, second = map(TrialFolder, folders)

    def stop(point: dict[str, float]) -> None:
        if point["step"] == 4 and rank == 0:  # what has reached the others when it is stopped
            shutil.copytree(first.checkpoints, second.path / "pulled")
        if point["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(trial, (first, second)[rank], examples, annotations, on_score=stop)
    torch.distributed.barrier()
    if rank == 0:
        assert max(first.complete_checkpoints()) == 4
        shutil.copytree(second.path / "pulled", first.checkpoints, dirs_exist_ok=True)
    else:
        shutil.rmtree(second.checkpoints)
        shutil.copytree(second.path / "pulled", second.checkpoints)
        assert second.complete_checkpoints() == [2]
    torch.distributed.barrier()
    seen: list[float] = []
    students: list[Student] = []
    with pytest.MonkeyPatch.context() as patch:
        made = StudentTrainer.__init__
        patch.setattr(
            StudentTrainer, "__init__", lambda self, student, *a: (students.append(student), made(self, student, *a))[1]
        )
        result = train_trial(
            trial, (first, second)[rank], examples, annotations, on_score=lambda point: seen.append(point["step"])
        )
    assert seen == [4, 6, 8], "both continue from the checkpoint that both have, and are told each score"
    assert bool(result) == (rank == 0)
    for tensor in students[0].model.state_dict().values():
        others = tensor.clone()
        torch.distributed.broadcast(others, src=0)
        assert torch.equal(tensor, others), "the second has the weights that the first has chosen"


@pytest.mark.integration
def test_two_workers_train_the_student_that_one_trains(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial = make_trial(tiny_t5, "cot_labelled", **SETTINGS, weight_average=0.9)
    folders = [make_folder(tmp_path / name) for name in ("one", "two")]
    result = train_trial(trial, folders[0], examples, annotations)
    port, context = free_port(), multiprocessing.get_context("spawn")
    arguments = (port, trial, [folders[1].path, make_folder(tmp_path / "other").path], examples, annotations)
    workers = [context.Process(target=as_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    expected, found = map(parameters, folders)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)
    curves = [[point["validation_accuracy"] for point in folder.curve()] for folder in folders]
    assert curves[0] == curves[1]
    assert counted(folders[1].result()) == counted(result)
    assert sorted(p.name for p in folders[1].path.iterdir()) == sorted(p.name for p in folders[0].path.iterdir())


def counted(result: dict[str, Any]) -> dict[str, Any]:
    """What of a result does not change with the last digit of a weight."""
    return {k: v for k, v in timeless(result).items() if k not in ("temperature", "validation", "test", "risk_coverage")} | {
        split: result[split]["accuracy"] for split in ("validation", "test")
    }
