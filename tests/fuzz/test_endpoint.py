"""Hostile requests over real sockets: no 500, no connection that hangs, no memory that grows, and good requests are answered."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from serve.settings import Settings
from tests.fuzz.requests import TEXT, Hostile, make_request

REQUESTS = int(os.environ.get("COTD_FUZZ", "300"))  # `make fuzz` sets more
SECONDS = 20.0  # until a connection counts as hung; a body that does not arrive is waited for a second
STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)


def send(host: str, port: int, hostile: Hostile) -> bytes:
    """What comes back until the server closes the connection, or has answered.

    Raises:
        TimeoutError: neither happens.
    """
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        with contextlib.suppress(ConnectionError):  # the server may refuse before it has read all
            for piece in hostile.pieces:
                connection.sendall(piece)
                time.sleep(hostile.pause)
            if hostile.end == "leave":
                return b""
            if hostile.end == "half":
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
                if hostile.end == "wait" and is_complete(answer):
                    break
        return answer


def is_complete(answer: bytes) -> bool:
    """Whether a response has arrived whole."""
    head, gap, body = answer.partition(b"\r\n\r\n")
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
        return len(body) >= int(length[1])
    return bool(gap) and body.endswith(b"0\r\n\r\n")


@pytest.mark.integration
@pytest.mark.parametrize("task", ["labels", "options"])
def test_hostile_requests_are_answered_and_do_no_harm(
    settings: Settings,
    serve_http: Callable[[Settings], str],
    student_of: Callable[..., Path],
    task: str,
) -> None:
    student = settings.student if task == "labels" else str(student_of("quiz"))
    limits = {"max_body_seconds": 1.0, "max_characters": 2_000, "max_body_bytes": 2**20}
    url = httpx.URL(serve_http(settings.model_copy(update={"student": student, **limits})))
    good = {"texts": [TEXT]} | ({"choices": [["a wall", "the sea"]]} if task == "options" else {})
    expected = httpx.post(url.join("v1/predict"), json=good, trust_env=False).json()
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    statuses: Counter[int] = Counter()
    memory: list[int] = []
    for number in range(REQUESTS):
        hostile = make_request(draw)
        said = f"request {number} of seed {seed}: {hostile.pieces[0][:2000]!r} …, end {hostile.end}"
        try:
            answer = send(url.host, url.port or 0, hostile)
        except TimeoutError:
            pytest.fail(f"no answer to {said}")
        found = [int(status) for status in STATUS.findall(answer)]
        statuses.update(found)
        assert 500 not in found, said
        assert found or not hostile.whole, f"closed without an answer: {said}"
        assert b"Set-Cookie" not in answer, said
        if number % 200 == 199:
            again = httpx.post(url.join("v1/predict"), json=good, trust_env=False, timeout=SECONDS)
            assert again.json() == expected, said
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
    assert statuses[200] > REQUESTS / 50, statuses
    assert statuses[422] > REQUESTS / 20, statuses
    if len(memory) > 8:
        settled, last = max(memory[len(memory) // 4 : len(memory) // 2]), memory[-1]
        assert last - settled < 32 * 2**20, f"memory grew from {settled:,} to {last:,} bytes: {memory}"
