"""Shared fixtures: embedded assets, a tiny random T5, a small study on disk, and a teacher that needs no model."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, settings

from cotd import assets
from cotd.data.config import DataConfig
from cotd.data.examples import Examples
from cotd.data.sources import load_examples
from cotd.teachers.requests import Request
from cotd.teachers.strategies import Tag, Tagged, Usable
from cotd.utils.iteration import batched
from tests.object_store import ObjectStore, empty_bucket, s3_server
from tests.tasks import SENTIMENT

# No deadline: the first example of a property pays for imports, and the machine may be busy.
settings.register_profile("cotd", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cotd")
THOROUGH = "one behaviour in its many forms, or a student that is trained until it has learned"
LONGEST = ("test_object_store.py", "test_end_to_end.py", "test_app.py")  # minutes each


def pytest_configure(config: pytest.Config) -> None:
    """Before PyTorch is imported, which reads it once.

    Models of a few thousand parameters are no faster on two threads, and several times as slow where anything else runs:
    each waits for the other at every step.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.addinivalue_line("markers", f"thorough: {THOROUGH}; `make test-fast` leaves it out")
    gc.disable()  # until all is imported: there is no garbage


def pytest_collection_finish() -> None:
    """What has been imported lives as long as the tests: looking through it, as each training does, takes a third of a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files first that take longest: no worker must begin one when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def own_tracking_store() -> Iterator[None]:
    """Gives each test the tracking store that it names: `mlflow.set_tracking_uri` also sets MLFLOW_TRACKING_URI.

    Neither a store of the developer's own nor that of an earlier test may reach a test or the processes it starts.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        yield
        # Whatever the test set is gone before `patch` restores what was there before.
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Writes an MLflow database with no experiments of cotd's to a path; returns its URI.

    MLflow makes its tables by 69 migrations, which take seconds: they are made once, and copied.
    """
    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"

    def make(path: Path) -> str:
        if not made.is_file():
            from mlflow import MlflowClient

            from cotd.storage.tracking_store import quiet_mlflow

            quiet_mlflow()
            uri = f"sqlite:///{made}"
            MlflowClient(uri, uri).search_experiments(max_results=1)  # opens it, and leaves the one in use alone
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(made)) as source, contextlib.closing(sqlite3.connect(path)) as copy:
            source.backup(copy)
        return f"sqlite:///{path}"

    return make


@pytest.fixture(scope="session")
def rotten_tomatoes() -> Path:
    """The folder of the embedded examples; where they are in place, pulling does nothing."""
    return assets.pull(["rotten-tomatoes"], report=lambda _: None)[-1]


@pytest.fixture(scope="session")
def movie_examples(rotten_tomatoes: Path) -> Examples:
    """All embedded movie reviews, with the default splits."""
    return load_examples(DataConfig(source="embedded:rotten-tomatoes"), SENTIMENT)


@pytest.fixture(scope="session")
def embedded_student() -> Path:
    return assets.pull(["t5-mini"], report=lambda _: None)[-1]


@pytest.fixture(scope="session")
def tiny_t5(embedded_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of 0.3M random parameters with the embedded student's tokenizer."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("base") / "tiny-t5"
    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def example_text(number: int, positive: bool) -> str:
    return f"{'A warm and funny' if positive else 'A dull and lifeless'} film, number {number}."


@pytest.fixture(scope="session")
def example_rows() -> pd.DataFrame:
    """60 labelled rows with a split column: 24 train, 24 validation, 12 test, half of each positive."""
    splits = ["train"] * 24 + ["validation"] * 24 + ["test"] * 12
    rows = [(example_text(i, i % 2 == 0), "positive" if i % 2 == 0 else "negative", s) for i, s in enumerate(splits)]
    return pd.DataFrame(rows, columns=["text", "label", "split"])


KINDS: dict[str, dict[str, Any]] = {
    "labels": {
        "task": {"name": "topics", "labels": ["sky", "sea", "land"], "noun": "headline"},
        "data": {"input": "{title}: {body}", "columns": {"split": "split"}},
    },
    "options": {
        "task": {"name": "quiz", "kind": "multiple_choice"},
        "data": {"columns": {"text": "question", "choices": "options", "label": "label", "split": "split"}},
    },
    "numbers": {
        "task": {"name": "sums", "kind": "numeric"},
        "data": {"columns": {"text": "question", "label": "label", "split": "split"}},
    },
}


@pytest.fixture
def write_kind(write_study: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a study of 60 rows of a task of each kind of KINDS: three labels over two fields, options by row, numbers."""

    def write(kind: str, **blocks: Any) -> Path:
        return write_study(kind_rows(kind), **(KINDS[kind] | blocks))

    return write


def kind_rows(kind: str) -> pd.DataFrame:
    """24 training, 24 validation and 12 test rows; gold options are letters and texts in turn."""
    rows: list[dict[str, Any]] = []
    for i in range(60):
        split = "train" if i < 24 else "validation" if i < 48 else "test"
        if kind == "labels":
            label = ("sky", "sea", "land")[i % 3]
            rows.append({"title": f"News {i}", "body": f"about the {label}", "label": label, "split": split})
        elif kind == "options":
            options = [f"wrong {k}" for k in range(3 + i % 2)]
            position = (i // 2) % len(options)
            options[position] = f"right {i}"
            label = "abcd"[position] if i % 3 else options[position]
            rows.append({"question": f"Which is it, {i}?", "options": json.dumps(options), "label": label, "split": split})
        else:
            rows.append({"question": f"What is {i} and 1000?", "label": f"{i + 1000:,}.0", "split": split})
    return pd.DataFrame(rows)


@pytest.fixture
def write_study(tmp_path: Path, example_rows: pd.DataFrame) -> Callable[..., Path]:
    """Writes `reviews.csv` and a valid `study.yaml` in `tmp_path`; returns the YAML's path."""

    def write(rows: pd.DataFrame = example_rows, data: dict[str, Any] | None = None, **blocks: Any) -> Path:
        rows.to_csv(tmp_path / "reviews.csv", index=False)
        columns = {"split": "split"} if "split" in rows else {}
        study = {
            "name": "small",
            "data": {"source": str(tmp_path / "reviews.csv"), "columns": columns} | (data or {}),
            "grid": {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
            "storage": str(tmp_path / "runs"),
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study | blocks))
        return path

    return write


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def s3(s3_port: int) -> Iterator[ObjectStore]:
    """An empty bucket on an S3 server."""
    with empty_bucket(s3_port) as store:
        yield store


def biased_scores(request: Request) -> list[float]:
    """Biased by 2 towards positive, as small teachers are: only a calibrated threshold separates the labels."""
    example = request.prompt.rstrip().splitlines()[-2]
    score = (2.5 if "warm" in example else 1.5) + len(example) % 3 / 10
    return [-score, 0.0]


class FakeTeacher:
    """Answers requests by looking for "warm" in the prompt, and remembers what it was asked.

    Attributes:
        fails: prompts for which this is true are answered with an error.
        write: the text of a completion. score: the log-probabilities of the options.
        stop_after: raise KeyboardInterrupt after this many batches.
    """

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.fails: Callable[[str], bool] = lambda prompt: False
        self.write: Callable[[Request], str] = lambda request: " The reviewer says what the film is like."
        self.score: Callable[[Request], list[float]] = biased_scores
        self.stop_after: int | None = None

    def answer(self, request: Request) -> dict[str, Any]:
        blank = {"text": "", "logprob": None, "label_logprobs": None, "finish_reason": "stop", "error": None}
        answer = {"key": request.key, "prompt_tokens": 5, "output_tokens": 1, **blank}
        if self.fails(request.prompt):
            return answer | {"error": "the engine ran out of memory", "finish_reason": None}
        if "allowed_token_ids" in request.sampling:
            return answer | {"label_logprobs": self.score(request)}
        return answer | {"text": self.write(request), "logprob": -3.0}

    def ask(self, requests: Callable[[], Iterable[Tagged]], what: str, usable: Usable) -> Iterator[tuple[Tag, dict[str, Any]]]:
        """What a strategy calls."""
        for tag, request in requests():
            self.asked.append(request)
            yield tag, self.answer(request)

    def complete(self, requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
        """What the engine does: batches of answers."""
        for number, batch in enumerate(batched(requests, 8), 1):
            self.asked += batch
            yield [self.answer(r) for r in batch]
            if number == self.stop_after:
                raise KeyboardInterrupt


@pytest.fixture
def teacher_double() -> FakeTeacher:
    return FakeTeacher()


CHROMIUM = os.environ.get("COTD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; what needs it is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium, or name one by COTD_CHROMIUM")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
