"""The Batch API of OpenAI and compatible providers as the teacher's engine: files of requests, completed within a day at half price.

A batch outlives this process. What it is called stands on disk before it is made, and its id as soon as there is one, so that a
run that was killed finds it again, and nothing is paid for twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from cotd.errors import CotdError
from cotd.progress import say
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import REFUSED_REASON, Completion
from cotd.utils.files import read_json, write_bytes
from pipelines.annotate.ask import Complete
from pipelines.annotate.engines.api.endpoint import Endpoint, certificates
from pipelines.annotate.engines.api.engine import api_key
from pipelines.annotate.engines.api.errors import (
    CutOff,
    Refused,
    ServerError,
    TeacherRefused,
    Transient,
    read_error,
    response_error,
)
from pipelines.annotate.engines.api.pacing import backoff
from pipelines.annotate.engines.api.responses import Usage

# OpenAI's limits are 50,000 requests and 200 MB a batch.
MOST_ROWS, MOST_BYTES = 50_000, 150_000_000
ENDED = {"completed", "expired", "cancelled", "failed"}
NEEDS_BATCHES = "Set teacher.api.mode: requests."
POLL_TRIES = 40  # a server that is away for half an hour ends no run
NAME = "cotd"  # the key in a batch's metadata under which it carries its name


@contextlib.contextmanager
def batch_engine(model: str, config: ApiConfig, count: Callable[[str], int], folder: Path) -> Iterator[Complete]:
    """A Batch API as an engine, for the duration of a block.

    Args:
        count: see `Endpoint`. folder: where the batches that are not done stand, a file each.

    Yields:
        A function like that of `pipelines.annotate.engines.choose.teacher_engine`, which takes all requests before it sends any.
        A row that failed in a way that may pass is asked about again by the next run.
    """
    endpoint = Endpoint(model, config, api_key(config), count)
    try:
        headers = config.headers(endpoint.key)
        with httpx.Client(timeout=config.timeout_seconds, headers=headers, verify=certificates()) as http:
            yield BatchClient(endpoint, http, folder).complete
    finally:
        asyncio.run(endpoint.close())


class BatchClient:
    """Sends requests as batches, waits for them, and reads what they completed."""

    def __init__(self, endpoint: Endpoint, http: httpx.Client, folder: Path):
        self.endpoint, self.config, self.http, self.folder = endpoint, endpoint.config, http, folder
        version = "/v1" if "/v1" in urlsplit(self.config.base_url).path else ""  # Azure's deployments have none
        self.path = f"{version}/{'chat/completions' if endpoint.chat else 'completions'}"

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Completions of all requests, those of a batch at a time; batches of an earlier run are waited for first.

        Raises:
            CotdError: a batch was not accepted, or no request of one; what others have completed is returned before.
        """
        waiting = {request.key: request for request in requests}
        batches = [batch for batch in self.known() if not waiting.keys().isdisjoint(batch["keys"])]
        sent = {key for batch in batches for key in batch["keys"]}
        for part in self.parts([request for key, request in waiting.items() if key not in sent]):
            batches.append(self.send(part))
        shown: dict[str, str] = {}
        while batches:
            for batch in list(batches):
                state = self.call("GET", f"batches/{batch['id']}", tries=POLL_TRIES)
                counts = state.get("request_counts") or {}
                words = f"{state.get('status')}, {counts.get('completed', 0):,} of {len(batch['keys']):,} requests"
                if shown.get(batch["id"]) != words:
                    say(f"  batch {batch['id']}: {words}")
                    shown[batch["id"]] = words
                if state.get("status") in ENDED:
                    yield from self.results(batch, state, waiting)
                    batches.remove(batch)
            if batches:
                self.wait(batches)

    def wait(self, batches: list[dict[str, Any]]) -> None:
        try:
            time.sleep(self.config.poll_seconds)
        except KeyboardInterrupt:
            say(f"  {len(batches)} batches go on at {self.config.base_url}; the same command fetches what they complete")
            raise

    # --- sending ------------------------------------------------------------------------------------------------------

    def parts(self, requests: list[Request]) -> Iterator[list[Request]]:
        """Requests in as many batches as the provider's limits want."""
        part: list[Request] = []
        size = 0
        for request in requests:
            length = len(self.line(request))
            if part and (len(part) == MOST_ROWS or size + length > MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(request)
            size += length
        if part:
            yield part

    def line(self, request: Request) -> bytes:
        body = self.endpoint.body(request)
        return json.dumps({"custom_id": request.key, "method": "POST", "url": self.path, "body": body}).encode() + b"\n"

    def send(self, part: list[Request]) -> dict[str, Any]:
        """Makes a batch; returns what is kept of it: `name`, `id` and the `keys` of its requests."""
        batch: dict[str, Any] = {"name": uuid.uuid4().hex, "id": None, "keys": [request.key for request in part]}
        self.keep(batch)
        name, lines = f"{batch['name']}.jsonl", b"".join(map(self.line, part))
        upload = {"file": (name, lines, "application/jsonl")}
        file = self.call("POST", "files", files=upload, data={"purpose": "batch"})["id"]
        wanted = {"input_file_id": file, "endpoint": self.path, "completion_window": "24h", "metadata": {NAME: batch["name"]}}
        # Whether a request to make a batch has arrived is not known where there is no response: it is looked for, not repeated.
        batch["id"] = self.call("POST", "batches", json=wanted, instead=lambda: self.find(batch["name"]))["id"]
        self.keep(batch)
        return batch

    def keep(self, batch: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / f"{batch['name']}.json", json.dumps(batch).encode(), durable=True)

    def known(self) -> Iterator[dict[str, Any]]:
        """The batches of earlier runs that are not done; one that was never made is forgotten."""
        for path in sorted(self.folder.glob("*.json")):
            batch = read_json(path)
            if batch["id"] is None and (found := self.find(batch["name"])):
                batch["id"] = found["id"]
                self.keep(batch)
            if batch["id"] is None:
                path.unlink()
            else:
                yield batch

    def find(self, name: str) -> dict[str, Any] | None:
        """The batch of a name as the provider lists it, or None."""
        page: dict[str, Any] = {"limit": 100}
        while True:
            listed = self.call("GET", "batches", params=page)
            batches = listed.get("data") or []
            if found := next((batch for batch in batches if (batch.get("metadata") or {}).get(NAME) == name), None):
                return found
            if not (batches and listed.get("has_more")):
                return None
            page["after"] = batches[-1]["id"]

    # --- reading ------------------------------------------------------------------------------------------------------

    def results(self, batch: dict[str, Any], state: dict[str, Any], waiting: dict[str, Request]) -> Iterator[list[Completion]]:
        """What a batch that has ended completed of the requests that are waited for; each that it did not has its `error`."""
        path = self.folder / f"{batch['name']}.json"
        if state["status"] == "failed":
            path.unlink()
            error = read_error({"error": (state.get("errors") or {}).get("data")})
            why = self.endpoint.plain(error.message) if error else "it does not say why"
            raise CotdError(f"{self.config.base_url} does not take the batch {batch['id']}: {why}. {NEEDS_BATCHES}")
        lines: dict[str, Any] = {}
        for file in filter(None, (state.get("error_file_id"), state.get("output_file_id"))):
            for line in self.call("GET", f"files/{file}/content", tries=POLL_TRIES).split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    plain = json.loads(line)
                    lines[plain["custom_id"]] = plain
        completions: list[Completion] = []
        refused: Exception | None = None
        try:
            for key in batch["keys"]:
                if key in waiting:
                    completion, problem = self.read(waiting[key], lines.get(key), state["status"])
                    completions.append(completion)
                    refused = problem or refused
        except CotdError:  # no request can succeed
            yield completions
            raise
        if isinstance(refused, Refused) and all(completion["error"] for completion in completions):
            path.unlink()
            raise CotdError(refused.advice or str(refused))
        yield completions
        if waiting.keys() >= set(batch["keys"]):
            path.unlink()

    def read(self, request: Request, line: Any, status: str) -> tuple[Completion, Exception | None]:
        """(A completion, with its `error` if there is none; the error)."""
        usage = Usage()
        kind: str | None = None
        problem: Exception
        try:
            response = (line or {}).get("response") or {}
            if response.get("body") is None:
                error = read_error(line)
                raise Transient(self.endpoint.plain(error.message) if error else f"the batch ended without it ({status})")
            body, code = response["body"], response.get("status_code") or 200
            if code >= 300:
                self.endpoint.raise_for(response_error(body, code, str(body)), httpx.Headers(), request)
            return self.endpoint.read(request, body, "", usage, httpx.Headers()), None
        except (TeacherRefused, CutOff, Refused) as error:
            problem, kind = error, REFUSED_REASON
        except CotdError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a file can hold: its row fails, and no other completion is lost
            problem = error
        return self.endpoint.failed(request, str(problem) or type(problem).__name__, usage, kind), problem

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        tries: int = 0,
        instead: Callable[[], dict[str, Any] | None] | None = None,
        **content: Any,
    ) -> Any:
        """What the API says to a request, which is tried again after errors that may pass: a file's bytes, else an object.

        Args:
            tries: 0 for as many as `retries` says. instead: looks, before another try, whether the last one has arrived after all;
                what it finds is returned.

        Raises:
            CotdError: there is none.
        """
        url = self.config.url(path)
        tries = tries or self.config.retries + 1
        for number in range(tries):
            try:
                response = self.http.request(method, url, **content)
                if response.status_code in (404, 405):
                    raise CotdError(f"{url} does not exist ({response.status_code}): has it a Batch API? {NEEDS_BATCHES}")
                if response.status_code < 300 and path.endswith("/content") and not response.content.startswith(b"<"):
                    return response.content
                said = self.endpoint.read_json(response)
                if response.status_code < 300 and isinstance(said, dict) and {"id", "data"} & said.keys():
                    return said
                status = None if response.status_code < 300 else response.status_code
                error = read_error(said, status) or ServerError(status, "", response.text, "")
                self.endpoint.raise_for(error, response.headers)
            except Refused as problem:
                raise CotdError(f"{url} refuses a batch ({problem}).") from problem
            except Transient as problem:
                last, wait = str(problem), problem.retry_after
            except httpx.RequestError as problem:
                last, wait = self.endpoint.without_key(str(problem) or type(problem).__name__), None
            if number < tries - 1:
                time.sleep(backoff(self.config, number + 1) if wait is None else wait)
                if instead and (found := instead()):
                    return found
        raise CotdError(f"{url} fails: {last}. What is done is kept; the same command resumes there.")
