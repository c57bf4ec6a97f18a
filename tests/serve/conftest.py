"""A student on disk, a registry of students, and an endpoint without Ray: in this process, or served from a thread."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.tasks.registry import parse_task
from serve.endpoint.endpoint import Endpoint
from serve.endpoint.metrics import FOLDER_VARIABLE
from serve.http.api import build_api
from serve.settings import Settings
from tests.tasks import SENTIMENT
from tests.tiny_models import write_tiny

NAME = "cotd-student"
TOKEN = "a-token-long-enough"


@pytest.fixture
def anyio_backend() -> str:
    """What runs asynchronous tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def student_folder(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student that predicts and explains."""
    folder = tmp_path_factory.mktemp("students") / "first"
    model, tokenizer = load_base(str(tiny_t5))
    model.get_input_embeddings().weight.data[:3] = 0  # otherwise it writes only special tokens
    model.lm_head.weight.data[:3] = 0
    card = {"method": "cot_labelled", "writes_rationales": True, "max_input_tokens": 64, "max_target_tokens": 8}
    card |= {"data": {"source": "embedded:rotten-tomatoes"}, "teacher": {"model": "embedded:smollm2-135m-instruct"}}
    Student(model, tokenizer, SENTIMENT, card).save(folder)
    return folder


TASKS: dict[str, dict[str, Any]] = {
    "tickets": {"kind": "classification", "labels": ["refund", "bug", "question"], "noun": "support ticket", "label_name": "Intent"},
    "intents": {"kind": "classification", "labels": [f"{verb} {noun}" for verb in ("open", "close", "find", "move")
                                                      for noun in ("account", "card", "loan", "report", "file")]},
    "quiz": {"kind": "multiple_choice"},
    "sums": {"kind": "numeric"},
}  # fmt: skip


@pytest.fixture(scope="session")
def student_of(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An untrained student of one of TASKS, of a T5 or of one of `tests.tiny_models`; returns its folder."""

    def make(name: str, base: str | None = None, **card: Any) -> Path:
        folder = tmp_path_factory.mktemp("students") / name
        task = parse_task({"name": name, **TASKS[name]})
        source = write_tiny(base, folder.with_name("base"), AutoTokenizer.from_pretrained(tiny_t5)) if base else tiny_t5
        model, tokenizer = load_base(str(source), task.labels)
        card = {"method": "cot_labelled", "writes_rationales": True, "max_input_tokens": 64, "max_target_tokens": 8, **card}
        Student(model, tokenizer, task, card).save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def student(student_folder: Path) -> Student:
    return Student.load(student_folder, device="cpu")


@pytest.fixture
def settings(student_folder: Path) -> Settings:
    return Settings(student=str(student_folder), poll_seconds=0)


class Registry:
    """An MLflow registry with versions of one student, registered without logging models, which takes seconds."""

    def __init__(self, folder: Path, uri: str):
        import mlflow

        from cotd.storage.tracking_store import quiet_mlflow

        quiet_mlflow()
        self.folder = folder
        self.uri = uri
        self.client = mlflow.MlflowClient(self.uri, self.uri)
        self.client.create_registered_model(NAME)

    def add(self, student: Path, spoil: Callable[[Path], None] = lambda folder: None) -> str:
        """Registers a copy of a student's folder, changed by `spoil`; returns its version."""
        copy = self.folder / f"student-{len(list(self.folder.iterdir()))}"
        shutil.copytree(student, copy)
        spoil(copy)
        return str(self.client.create_model_version(NAME, copy.as_uri()).version)

    def folder_of(self, version: str) -> Path:
        return Path(self.client.get_model_version(NAME, version).source.removeprefix("file://"))

    def promote(self, version: str) -> None:
        self.client.set_registered_model_alias(NAME, "champion", version)


@pytest.fixture
def registry(tmp_path: Path, make_store: Callable[[Path], str]) -> Registry:
    return Registry(tmp_path, make_store(tmp_path / "mlflow.db"))


@pytest.fixture
def with_endpoint() -> Callable[..., Any]:
    """Runs a coroutine function with a client of an endpoint's API and the endpoint."""

    def run(settings: Settings, use: Callable[[httpx.AsyncClient, Endpoint], Awaitable[Any]]) -> Any:
        async def serve() -> Any:
            endpoint = Endpoint(settings)
            api = build_api(endpoint)
            transport = httpx.ASGITransport(api, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            async with api.router.lifespan_context(api), client:
                return await use(client, endpoint)

        import prometheus_client  # noqa: F401 - reads FOLDER_VARIABLE now, before an endpoint sets it

        try:
            return asyncio.run(serve())
        finally:
            os.environ.pop(FOLDER_VARIABLE, None)

    return run


@pytest.fixture
def serve_http() -> Iterator[Callable[[Settings], str]]:
    """Serves an endpoint over HTTP from a thread; returns its address."""
    import uvicorn

    servers: list[Any] = []

    def serve(settings: Settings) -> str:
        api = build_api(Endpoint(settings))
        server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        servers.append((server, thread))
        thread.start()
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)
