"""The load generator, in a process of its own: `python -m tests.benchmarks.serve.load '{"url": …}'`, a JSON object out.

Bare sockets: on two cores a comfortable HTTP client would take more time than the endpoint it asks.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from serve.client import LONGEST_WAIT, RETRIED_STATUSES, backoff

TIMEOUT = 30.0  # seconds for one response
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
VERSION = re.compile(rb'"version":"([^"]*)"')


@dataclass
class Load:
    """What to send, and its outcome.

    Attributes:
        rate: requests a second, over all clients; None sends the next as soon as the last is answered.
        seconds: how long; None until standard input closes, or `count` requests have been sent.
        retries: how often a failed request is sent again, after the same errors and waits as in `serve.client`.
    """

    url: str
    texts: list[str]
    path: str = "/v1/predict"
    clients: int = 1
    rate: float | None = None
    seconds: float | None = None
    count: int | None = None
    retries: int = 0
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    sent: int = 0
    stop: bool = False

    def requests(self) -> list[bytes]:
        place = urlsplit(self.url)
        made = []
        for text in self.texts:
            body = json.dumps({"texts": [text]}).encode()
            head = f"POST {self.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            made.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return made

    async def client(self, requests: list[bytes], began: float) -> None:
        place = urlsplit(self.url)
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stop and (self.count is None or self.sent < self.count):
            number, self.sent = self.sent, self.sent + 1
            if self.rate:
                await asyncio.sleep(max(0.0, began + number / self.rate - time.perf_counter()))
            started, answered = time.perf_counter(), False
            for attempt in range(self.retries + 1):
                wait = None
                try:
                    async with asyncio.timeout(TIMEOUT):
                        if streams is None or streams[0].at_eof():  # closed by the server while idle: nothing was sent on it
                            streams = await asyncio.open_connection(place.hostname, place.port)
                        status, wait, keep_alive = await self.exchange(*streams, requests[number % len(requests)])
                    streams = streams if keep_alive else None
                except (OSError, EOFError) as error:  # EOFError: the server closed the connection; TimeoutError is an OSError
                    status = type(error).__name__
                    if streams:
                        streams[1].close()
                    streams = None
                self.statuses[status] += 1
                answered = status == "200"
                # A connection that is refused at once, and a status that is not temporary, are not tried again.
                is_temporary = (
                    int(status) in RETRIED_STATUSES
                    if status.isdecimal()
                    else (attempt > 0 or status != "ConnectionRefusedError")
                )
                if answered or attempt == self.retries or not is_temporary:
                    break
                await asyncio.sleep(backoff(attempt) if wait is None else min(wait, LONGEST_WAIT))
            self.failed += not answered
            self.milliseconds.append((time.perf_counter() - started) * 1000)
        if streams:
            streams[1].close()

    async def exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[str, float | None, bool]:
        """(status, seconds of a Retry-After header or None, whether the connection stays open)."""
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None:
            raise EOFError("a response without a length")
        body = await reader.readexactly(int(length[1]))
        if version := VERSION.search(body):
            self.versions[version[1].decode()] += 1
        after = AFTER.search(head)
        keep_alive = CLOSES.search(head) is None
        if not keep_alive:
            writer.close()
        return head.split(b" ", 2)[1].decode(), float(after[1]) if after else None, keep_alive

    async def run(self) -> dict[str, Any]:
        requests, began = self.requests(), time.perf_counter()
        clients = asyncio.gather(*(self.client(requests, began) for _ in range(self.clients)))
        if self.seconds is not None:
            await asyncio.wait([clients], timeout=self.seconds)
        elif self.count is None:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        self.stop = self.seconds is not None or self.count is None
        await clients
        took = time.perf_counter() - began
        figures = {"seconds": took, "failed": self.failed, "milliseconds": [round(m, 3) for m in self.milliseconds]}
        return {**figures, "statuses": dict(self.statuses), "versions": dict(self.versions)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(**json.loads(sys.argv[1])).run())))
