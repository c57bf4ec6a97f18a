"""A real S3 server beside the tests, moto's, and a proxy before it that is slow, fails or goes away when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.processes import free_port, running, wait_for

PER_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


@dataclass
class ObjectStore:
    """A running server.

    Attributes:
        url: the bucket.
        environment: what a client needs to find the server.
        requests: (method, path) of every request, in the order in which they came.
        taken: the paths of puts that the server has taken.
        delay: (method, path) → seconds to hold a request back.
        fails: (method, path, number of the request) → whether to answer it with 503.
    """

    url: str
    environment: dict[str, str]
    requests: list[tuple[str, str]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    delay: Callable[[str, str], float] = lambda method, path: 0.0
    fails: Callable[[str, str, int], bool] = lambda method, path, number: False

    def written(self, end: str) -> list[str]:
        """The paths ending so that were put, once for each time."""
        return [path for path in self.taken if path.endswith(end)]


def handler(store: ObjectStore, port: int) -> type[BaseHTTPRequestHandler]:
    # S3 checks the condition of a put and puts in one step. moto does so in two, so conditional puts go to it one by one.
    conditional = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            store.requests.append((self.command, path))
            number = len(store.requests)
            time.sleep(store.delay(self.command, path))
            if store.fails(self.command, path, number):
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in PER_HOP}
            with conditional if "If-None-Match" in self.headers else contextlib.nullcontext():
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                server.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
                reply = server.getresponse()
                content = reply.read()
                server.close()
            if self.command == "PUT" and reply.status == 200:
                store.taken.append(path)
            self.answer(reply.status, dict(reply.getheaders()), content)

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            for name, value in headers.items():
                if name.lower() not in PER_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that was killed
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = forward

    return Handler


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """An S3 server on this machine alone; gives its port."""
    port, log = free_port(), folder / "moto.log"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log):
        wait_for(f"http://127.0.0.1:{port}", log)
        yield port


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server with an empty bucket; it is gone, with all in it, at the end."""
    with s3_server(folder) as port, empty_bucket(port) as store:
        yield store


@contextlib.contextmanager
def empty_bucket(port: int) -> Iterator[ObjectStore]:
    """A bucket of a server, through a proxy of its own.

    Clients of this process and of those that it starts find it by the environment.
    """
    import boto3
    import s3fs

    bucket = f"cotd-{uuid.uuid4().hex[:8]}"  # another one each time: file systems and copies are kept by URL
    store = ObjectStore(f"s3://{bucket}", {})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler(store, port))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    store.environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=bucket)
    s3fs.S3FileSystem.clear_instance_cache()  # they have the server of an earlier test
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment.items():
                patch.setenv(name, value)
            yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.shutdown()
        proxy.server_close()
        thread.join()
