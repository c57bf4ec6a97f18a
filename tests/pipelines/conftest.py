"""A small HTTP server that answers as an OpenAI-compatible teacher would, or passes on to one, and injects faults."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

import cotd.teachers.teacher
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.study.config import StudyConfig, load_config
from cotd.tasks.registry import SENTIMENT

REFUSAL = "I cannot help with that."
KEY = "sk-secret-0123456789"


class FaultServer:
    """What a test asks in place of a provider.

    Attributes:
        fault: (prompt, number of the try, from 0) → the name of a fault of `Handler`, or None for a good answer.
        write: prompt → the text of a good answer.
        bodies, headers, arrivals: of every request for an answer, in the order of their arrival (monotonic seconds).
        upstream: a real server's URL up to /v1, which then gives the good answers.
        logprobs: whether label log-probabilities are given.
    """

    def __init__(self, upstream: str | None = None):
        self.upstream = upstream
        self.fault: Callable[[str, int], str | None] = lambda prompt, tries: None
        self.write: Callable[[str], str] = answer_in_json
        self.logprobs = True
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.arrivals: list[float] = []
        self.tries: Counter[str] = Counter()
        self.models = ["teacher-1"]
        self.closing = threading.Event()
        self.lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(body) for body in self.bodies]

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        handler = type("Bound", (Handler,), {"faults": self})
        server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 256})(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()
            thread.join()


Provider = tuple[FaultServer, str]
MakeStudy = Callable[..., StudyConfig]


def prompt_of(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def number_of(prompt: str) -> str:
    return prompt.rpartition("number ")[2].partition(".")[0]


def review_of(prompt: str) -> str:
    return prompt.rstrip().rpartition("eview: ")[2]


def answer_in_json(prompt: str) -> str:
    label = "Positive" if "warm" in review_of(prompt) else "Negative"
    return json.dumps({"rationale": "The reviewer says what the film is like.", "label": label})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": m} for m in self.faults.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = prompt_of(body)
        with self.faults.lock:
            self.faults.bodies.append(body)
            self.faults.arrivals.append(time.monotonic())
            self.faults.headers.append({k.lower(): v for k, v in self.headers.items()})
            number = self.faults.tries[prompt]
            self.faults.tries[prompt] += 1
        fault = self.faults.fault(prompt, number)
        if fault:
            getattr(self, f"fault_{fault}")(body)
        elif self.faults.upstream:
            answer = httpx.post(self.faults.upstream + self.path.removeprefix("/v1"), json=body, timeout=120)
            self.send(answer.status_code, answer.json())
        else:
            self.send(200, self.good(body))

    def good(self, body: dict[str, Any], text: str | None = None) -> dict[str, Any]:
        prompt = prompt_of(body)
        text = self.faults.write(prompt) if text is None else text
        choice: dict[str, Any] = {"finish_reason": "stop", "index": 0}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
            if "logprobs" in body and self.faults.logprobs:
                # As biased as tests/conftest.py's FakeTeacher.
                review = review_of(prompt)
                score = (2.5 if "warm" in review else 1.5) + len(review) % 3 / 10
                choice["logprobs"] = {"top_logprobs": [{" Positive": -0.1, " Neg": -0.1 - score, " the": -9.0}]}
        return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 10}}

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    # --- faults -----------------------------------------------------------------------------------------------------

    def fault_429(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "slow down"}})

    def fault_429_seconds(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="0")

    def fault_429_one_second(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="1")

    def fault_429_tomorrow(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "a day's worth is used up"}}, Retry_After="86400")

    def fault_429_date(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "slow down"}}, Retry_After=formatdate(time.time(), usegmt=True))

    def fault_500(self, body: dict[str, Any]) -> None:
        self.send(500, b"<html>out of order</html>")

    def fault_hang(self, body: dict[str, Any]) -> None:
        self.faults.closing.wait(30)
        self.close_connection = True

    def fault_truncated(self, body: dict[str, Any]) -> None:
        data = json.dumps(self.good(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def fault_malformed(self, body: dict[str, Any]) -> None:
        self.send(200, b'{"choices": [{"message": ')

    def fault_no_choices(self, body: dict[str, Any]) -> None:
        self.send(200, {"choices": [], "usage": None})

    def fault_odd(self, body: dict[str, Any]) -> None:
        self.send(200, {"choices": [{"message": "hello", "text": None}], "usage": 3})

    def fault_odd_usage(self, body: dict[str, Any]) -> None:
        answer = self.good(body)
        odd = ["many", float("nan"), 10**12, -5, True, [3], None]
        answer["usage"] = dict.fromkeys(("prompt_tokens", "completion_tokens"), odd[len(prompt_of(body)) % len(odd)])
        self.send(200, answer)

    def fault_deep(self, body: dict[str, Any]) -> None:
        self.send(200, b'{"choices": ' + b"[" * 100_000)

    def fault_deep_text(self, body: dict[str, Any]) -> None:
        self.send(200, self.good(body, '{"rationale": ' + "[" * 100_000 + "}"))

    def fault_half_pair(self, body: dict[str, Any]) -> None:
        self.send(400, {"error": {"message": "half \ud800 a pair"}})

    def fault_429_no_such_year(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": []}, Retry_After="Fri, 31 Dec 99999999999999999999 23:59:59 GMT")

    def fault_not_gzip(self, body: dict[str, Any]) -> None:
        self.send(200, b"plain", Content_Encoding="gzip")

    def fault_empty(self, body: dict[str, Any]) -> None:
        self.send(200, self.good(body, ""))

    def fault_length(self, body: dict[str, Any]) -> None:
        answer = self.good(body, '{"rationale": "The reviewer')
        answer["choices"][0]["finish_reason"] = "length"
        self.send(200, answer)

    def fault_thought_only(self, body: dict[str, Any]) -> None:
        answer = self.good(body, "")
        answer["choices"][0]["finish_reason"] = "length"
        self.send(200, answer)

    def fault_prose(self, body: dict[str, Any]) -> None:
        self.send(200, self.good(body, "Sure! I would say that it is positive."))

    def fault_refusal(self, body: dict[str, Any]) -> None:
        answer = self.good(body, "")
        answer["choices"][0]["message"] |= {"content": None, "refusal": REFUSAL}
        self.send(200, answer)

    def fault_filtered(self, body: dict[str, Any]) -> None:
        answer = self.good(body, "")
        answer["choices"][0]["finish_reason"] = "content_filter"
        self.send(200, answer)

    def fault_400(self, body: dict[str, Any]) -> None:
        self.send(400, {"error": {"message": f"bad request, key {self.headers['authorization']}"}})

    def fault_401(self, body: dict[str, Any]) -> None:
        self.send(401, {"error": {"message": f"bad key {self.headers['authorization']}"}})

    def fault_404(self, body: dict[str, Any]) -> None:
        self.send(404, {"error": {"message": "no such model"}})

    def fault_quota(self, body: dict[str, Any]) -> None:
        self.send(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})


LOAD_ONCE = functools.cache(cotd.teachers.teacher.load_tokenizer)


@pytest.fixture(autouse=True)
def tokenizers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher's tokenizer takes half a second to load, and some eighty annotation runs of these tests want the same one."""
    monkeypatch.setattr(cotd.teachers.teacher, "load_tokenizer", LOAD_ONCE)


@pytest.fixture(scope="session")
def student_folder(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that has learned nothing, and predicts labels."""
    folder = tmp_path_factory.mktemp("students") / "first"
    model, tokenizer = load_base(str(tiny_t5))
    Student(model, tokenizer, SENTIMENT, {"method": "finetune", "max_input_tokens": 64}).save(folder)
    return folder


@pytest.fixture
def hear_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def provider() -> Iterator[tuple[FaultServer, str]]:
    """A fault server, and its URL."""
    server = FaultServer()
    with server.serving() as url:
        yield server, url


@pytest.fixture
def study(write_study: Callable[..., Path], provider: Provider, monkeypatch: pytest.MonkeyPatch) -> MakeStudy:
    """A study of 60 reviews whose teacher is the provider: 12 test, 24 train, each of these also given gold."""
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def make(*overrides: str, rows: pd.DataFrame | None = None) -> StudyConfig:
        api = {
            "base_url": provider[1],
            "key_env": "TEACHER_KEY",
            "concurrency": 8,
            "backoff_seconds": 0.01,
            "timeout_seconds": 10,  # a busy machine may stand still for seconds
        }
        teacher = {"model": "teacher-1", "strategy": "chain_of_thought", "api": api}
        path = write_study(teacher=teacher) if rows is None else write_study(rows, teacher=teacher)
        return load_config(path, list(overrides))

    return make
