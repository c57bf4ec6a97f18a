"""A small HTTP server that responds as an OpenAI-compatible provider would, or forwards to one, and injects faults."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from cotd.study.config import StudyConfig

REFUSAL = "I cannot help with that."
KEY = "sk-secret-0123456789"
SLOW_DOWN = {"error": {"message": "slow down"}}

# Faults by name. Whole responses: status, content, headers.
RESPONSES: dict[str, tuple[int, Any, dict[str, str]]] = {
    "429": (429, SLOW_DOWN, {}),
    "429_seconds": (429, SLOW_DOWN, {"Retry-After": "0"}),
    "429_one_second": (429, SLOW_DOWN, {"Retry-After": "1"}),
    "429_tomorrow": (429, {"error": {"message": "a day's worth is used up"}}, {"Retry-After": "86400"}),
    "429_no_such_year": (429, {"error": []}, {"Retry-After": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"}),
    "quota": (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, {}),
    "500": (500, b"<html>out of order</html>", {}),
    "page": (200, b"<html>Back in a minute</html>", {}),
    "malformed": (200, b'{"choices": [{"message": ', {}),
    "no_choices": (200, {"choices": [], "usage": None}, {}),
    "odd": (200, {"choices": [{"message": "hello", "text": None}], "usage": 3}, {}),
    "deep": (200, b'{"choices": ' + b"[" * 100_000, {}),
    "half_pair": (400, {"error": {"message": "half \ud800 a pair"}}, {}),
    "not_gzip": (200, b"plain", {"Content-Encoding": "gzip"}),
    "404": (404, {"error": {"message": "no such model"}}, {}),
    "402": (402, {"error": {"message": "the balance is used up", "code": 402}}, {}),
    "400_credit": (400, {"type": "error", "error": {"type": "billing_error", "message": "buy more"}}, {}),
    "403_credit": (403, {"code": "403", "msg": "Insufficient balance of the account"}, {}),
    "429_credit": (429, [{"error": {"code": 429, "status": "exceeded_current_quota_error", "message": "see your plan"}}], {}),
    "200_credit": (200, {"error": {"code": 402, "message": "the balance is used up"}}, {}),
    "403": (403, {"error": {"message": "flagged by a filter", "metadata": {"reasons": ["insult"]}}}, {}),
    "403_page": (403, b"<html><h1>Blocked</h1></html>", {}),
    "403_limit": (403, {"message": "API rate limit exceeded"}, {}),
    "200_limit": (200, {"error": {"code": 429, "message": "the provider is busy"}}, {}),
    "200_limit_word": (200, {"error": {"type": "rate_limit_error", "message": "wait"}, "choices": None}, {}),
    "200_limit_number": (200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit triggered"}, "choices": []}, {}),
    "200_wait": (200, {"error": "Too many requests: try again in 20ms"}, {}),
    "200_stream": (200, b'data: {"error": {"code": "429", "message": "wait"}}\n\ndata: [DONE]\n\n', {}),
    "200_choice": (200, {"choices": [{"error": {"code": 502, "message": "lost the provider"}, "finish_reason": "error"}]}, {}),
    "200_unknown": (200, {"object": "error", "message": "it did not go well", "code": 40303}, {}),
    "200_flagged": (200, {"error": {"code": "content_policy_violation", "message": "flagged by a filter"}}, {}),
}
# Responses as good ones are, but for their text and finish reason.
COMPLETIONS = {
    "empty": ("", "stop"),
    "prose": ("Sure! I would say that it is positive.", "stop"),
    "deep_text": ('{"rationale": ' + "[" * 100_000 + "}", "stop"),
    "length": ('{"rationale": "The reviewer', "length"),
    "thought_only": ("", "length"),
    "filtered": ("", "content_filter"),
}


class FaultServer:
    """Stands in for a provider.

    Attributes:
        fault: (prompt, number of the attempt, from 0) → the name of a fault, or None for a good response.
        write: prompt → the text of a good response.
        bodies, headers, arrivals: of every completion request, in order of arrival (monotonic seconds).
        upstream: a real server's URL up to /v1, which then makes the good responses.
        logprobs: whether responses have log-probabilities of labels.
        models: those that it lists. deployed: those that it has.
        wrap: a good response's text → the message that holds it.
        files, batches: what was uploaded and made, by id. polls: how often a batch is asked for before it has ended.
            listed: how many batches a page of their list has.
        batch_fault: ("POST files", say, and the number of the call) → a fault of the Batch API: the name of a response, "drop"
            (it is done, and the connection breaks), "expire" or "fail" (what becomes of the batch).
        refuse: path, body and headers of a request → why it is refused with 400, or None.
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
        self.deployed = {"teacher-1"}
        self.wrap: Callable[[str], dict[str, Any]] = lambda text: {"content": text}
        self.refuse: Callable[[str, dict[str, Any], Any], str | None] = lambda path, body, headers: None
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls = 2
        self.listed = 100
        self.batch_fault: Callable[[str, int], str | None] = lambda call, number: None
        self.calls: Counter[str] = Counter()
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


def example_of(prompt: str) -> str:
    return prompt.rstrip().rpartition("eview: ")[2]


def answer_in_json(prompt: str) -> str:
    label = "Positive" if "warm" in example_of(prompt) else "Negative"
    return json.dumps({"rationale": "The reviewer says what the film is like.", "label": label})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "/batches" in self.path or "/files" in self.path:
            self.batch_api(b"")
            return
        self.send(200, {"data": [{"id": m} for m in self.faults.models]})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if "/batches" in self.path or "/files" in self.path:
            self.batch_api(content)
            return
        body = json.loads(content)
        prompt = prompt_of(body)
        with self.faults.lock:
            self.faults.bodies.append(body)
            self.faults.arrivals.append(time.monotonic())
            self.faults.headers.append({k.lower(): v for k, v in self.headers.items()})
            number = self.faults.tries[prompt]
            self.faults.tries[prompt] += 1
        if body["model"] not in self.faults.deployed:
            self.send(*RESPONSES["404"])
            return
        if why := self.faults.refuse(self.path, body, self.headers):
            self.send(400, {"error": {"message": why}})
            return
        fault = self.faults.fault(prompt, number)
        if fault in RESPONSES:
            status, content, headers = RESPONSES[fault]
            self.send(status, content, headers)
        elif fault in COMPLETIONS:
            self.send(200, self.good(body, *COMPLETIONS[fault]))
        elif fault:
            getattr(self, f"fault_{fault}")(body)
        elif self.faults.upstream:
            response = httpx.post(self.faults.upstream + self.path.removeprefix("/v1"), json=body, timeout=120)
            self.send(response.status_code, response.json())
        else:
            self.send(200, self.good(body))

    def good(self, body: dict[str, Any], text: str | None = None, finish_reason: str = "stop") -> dict[str, Any]:
        prompt = prompt_of(body)
        text = self.faults.write(prompt) if text is None else text
        choice: dict[str, Any] = {"finish_reason": finish_reason, "index": 0}
        if "messages" in body:
            choice["message"] = {"role": "assistant", **self.faults.wrap(text)}
        else:
            choice["text"] = text
            if "logprobs" in body and self.faults.logprobs:
                # As biased as tests/conftest.py's FakeTeacher is.
                example = example_of(prompt)
                score = (2.5 if "warm" in example else 1.5) + len(example) % 3 / 10
                choice["logprobs"] = {"top_logprobs": [{" Positive": -0.1, " Neg": -0.1 - score, " the": -9.0}]}
        return {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 10}}

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # The Batch API.

    def batch_api(self, content: bytes) -> None:
        faults = self.faults
        parts = self.path.partition("?")[0].removeprefix("/v1/").split("/")
        call = f"{self.command} {parts[0]}"
        with faults.lock:
            fault = faults.batch_fault(call, faults.calls[call])
            faults.calls[call] += 1
        if fault in RESPONSES:
            self.send(*RESPONSES[fault])
            return
        if call == "POST files":
            boundary = self.headers["content-type"].partition("boundary=")[2].encode()
            part = next(p for p in content.split(b"--" + boundary) if b'name="file"' in p)
            identity = f"file-{len(faults.files)}"
            faults.files[identity] = part.partition(b"\r\n\r\n")[2].strip()
            done: Any = {"id": identity}
        elif call == "POST batches":
            done = {"id": f"batch-{len(faults.batches)}", "status": "validating", "polls": 0, "becomes": fault} | json.loads(
                content
            )
            faults.batches[done["id"]] = done
        elif call == "GET batches" and len(parts) == 1:
            after = dict(parse_qsl(urlsplit(self.path).query)).get("after")
            start = 1 + list(faults.batches).index(after) if after else 0
            page = list(faults.batches.values())[start : start + faults.listed]
            done = {"data": page, "has_more": start + len(page) < len(faults.batches)}
        elif call == "GET batches":
            done = faults.batches[parts[1]]
            done["polls"] += 1
            if done["polls"] >= faults.polls and done["status"] == "validating":
                self.end_batch(done)
        else:
            self.send(200, faults.files[parts[1]])
            return
        if fault == "drop":
            self.close_connection = True
        else:
            self.send(200, done)

    def end_batch(self, batch: dict[str, Any]) -> None:
        if batch["becomes"] == "fail":
            batch |= {"status": "failed", "errors": {"data": [{"message": "the file is too large", "code": "too_large"}]}}
            return
        outputs: dict[str, list[Any]] = {"output": [], "error": []}
        for n, line in enumerate(map(json.loads, self.faults.files[batch["input_file_id"]].split(b"\n"))):
            prompt = prompt_of(line["body"])
            self.faults.bodies.append(line["body"])
            fault = self.faults.fault(prompt, self.faults.tries[prompt])
            self.faults.tries[prompt] += 1
            if batch["becomes"] == "expire" and n % 2:
                error = {"code": "batch_expired", "message": "it was too late for this one"}
                outputs["error"].append({"custom_id": line["custom_id"], "response": None, "error": error})
                continue
            status, content = (
                RESPONSES[fault][:2] if fault in RESPONSES else (200, self.good(line["body"], *COMPLETIONS.get(fault, ())))
            )
            response = {"status_code": status, "body": content.decode() if isinstance(content, bytes) else content}
            outputs["output" if status == 200 else "error"].append({"custom_id": line["custom_id"], "response": response})
        for kind, lines in outputs.items():
            self.faults.files[f"{kind}-{batch['id']}"] = "\n".join(json.dumps(line) for line in reversed(lines)).encode()
            batch[f"{kind}_file_id"] = f"{kind}-{batch['id']}" if lines else None
        batch["status"] = "expired" if batch["becomes"] == "expire" else "completed"

    # Faults that depend on the request, or on time.

    def fault_429_date(self, body: dict[str, Any]) -> None:
        self.send(429, SLOW_DOWN, {"Retry-After": formatdate(time.time(), usegmt=True)})

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

    def fault_odd_usage(self, body: dict[str, Any]) -> None:
        response = self.good(body)
        odd = ["many", float("nan"), 10**12, -5, True, [3], None]
        response["usage"] = dict.fromkeys(("prompt_tokens", "completion_tokens"), odd[len(prompt_of(body)) % len(odd)])
        self.send(200, response)

    def fault_refusal(self, body: dict[str, Any]) -> None:
        response = self.good(body, "")
        response["choices"][0]["message"] |= {"content": None, "refusal": REFUSAL}
        self.send(200, response)

    def fault_400(self, body: dict[str, Any]) -> None:
        self.send(400, {"error": {"message": f"bad request, key {self.headers['authorization']}"}})

    def fault_401(self, body: dict[str, Any]) -> None:
        self.send(401, {"error": {"message": f"bad key {self.headers['authorization']}"}})
