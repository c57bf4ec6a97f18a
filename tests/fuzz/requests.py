"""Hostile requests to the endpoint, as bytes on a socket: made from valid ones, by a seed."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.hostile import HOSTILE

TEXT = "A warm and funny film."
# (path, body) of requests that are valid for a student of fixed labels, or for one that chooses among options.
VALID: list[tuple[str, Any]] = [
    ("/v1/predict", {"texts": TEXT}),
    ("/v1/predict", {"texts": [TEXT, "Dull."], "rationale": False, "stream": True}),
    ("/v1/predict", {"texts": [TEXT], "rationale": True, "stream": True}),
    ("/v1/predict", {"texts": [TEXT, TEXT], "choices": [["a wall", "the sea"], ["a", "b", "c"]]}),
    ("/invocations", {"inputs": [TEXT]}),
    ("/invocations", {"inputs": {"text": [TEXT, "Dull."]}, "params": {"rationale": False}}),
    ("/invocations", {"instances": [{"text": TEXT}]}),
    ("/invocations", {"instances": [{"text": TEXT, "choices": ["a wall", "the sea"]}]}),
    ("/invocations", {"dataframe_split": {"columns": ["text"], "data": [[TEXT]], "index": [0]}}),
    ("/invocations", {"dataframe_records": [{"text": TEXT}]}),
]
ROUTES = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/ping", "/metrics", "/v1/model", "/v1/predict", "/invocations"]
PATHS = [
    "*", "//", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/predict/", "/v1//predict", "/v1/predict%00",
    "/v1/predict?a=%ff&a=1",
    "/%", "/%zz", "/\xff\xfe", "/v1/model;x=1", "http://evil.example/v1/model", "/" + "a" * 70_000, "/v1/model#x", "v1/model", "",
]  # fmt: skip
METHODS = [
    "GET",
    "HEAD",
    "OPTIONS",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "post",
    "P\xd6ST",
    "",
    "A" * 5000,
]
NUMBERS = [
    "1e999",
    "-1e999",
    "NaN",
    "-Infinity",
    "1" * 5000,
    "1" * 400 + ".5",
    "-0.0",
    "1e-400",
    "0" * 50 + "1",
    "9223372036854775808",
]
RAW = [
    *NUMBERS, "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, '"\\ud800"', '"\\u0000"',
    '"\\uDE00\\uD83D"', "'x'", "[,]",
    "{}", "[]", '""', "null", "true", "undefined", '{"a": 1, "a": 2}', "\x00", "\ufeff{}", "// x", "[1 2]", '"' + "\\" * 99,
    "[" + "1," * 20_000 + "1]",
    "{" + ",".join(f'"k{i}": {i}' for i in range(5000)) + "}", '["' + '", "'.join("x" * 300) + '"]',
]  # fmt: skip
KEYS = [
    "texts",
    "choices",
    "rationale",
    "stream",
    "inputs",
    "instances",
    "columns",
    "data",
    "params",
    "text",
    "__proto__",
    "",
    "\ud800",
]
HEADERS = [
    "X-Request-ID: abc\r\nSet-Cookie: x=y", "X-Request-ID: \x80\xff", "X-Request-ID: " + "i" * 70_000, "X-Request-ID:", "Host:",
    "Host: a\r\nHost: b",
    "Authorization: Bearer", "Authorization: Bearer \xe9\xff", "Authorization: Basic AAAA", "Accept: text/event-stream",
    "Accept: */*;q=NaN",
    "Expect: 100-continue", "Expect: nonsense",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA", "Connection: close, close", "Connection: keep-alive",
    "Content-Encoding: gzip", "Content-Encoding: deflate, gzip", "Range: bytes=0-18446744073709551615", "Origin: null",
    "Cookie: " + "a=b; " * 2000,
    "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity", "Transfer-Encoding: chunked, chunked", "No colon",
    ": no name", " folded",
    "A: b\n c", "A\x00B: c", "A: \x00", "\xff: x", "X-Forwarded-For: 127.0.0.1, ::1", "Content-Length: 0", "Trailer: Host",
    "\r\n".join(["A: b"] * 300),
]  # fmt: skip
KINDS = [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=utf-16",
    "application/xml",
    "application/json;", ";", "", "application/vnd.x+json", "application/json, text/plain", "APPLICATION/JSON", "\xff",
    "a" * 9000, "image/png",
]  # fmt: skip
LENGTHS = [
    "-1",
    "1e3",
    "0x10",
    "99999999999999999999",
    "9" * 5000,
    "",
    "+5",
    "5, 5",
    "5\r\nContent-Length: 6",
    "\xb2",
    "1.0",
    "NaN",
    " 7 ",
    "1_0",
]


@dataclass(frozen=True)
class Hostile:
    """Bytes to send, and how.

    Attributes:
        pieces: what is sent, a piece at a time.
        pause: seconds between pieces.
        end: what follows the last piece: `wait` for the response, `half` close (nothing more is sent), or `leave`.
        whole: whether the request is complete and well-formed HTTP, so that it must be answered.
    """

    pieces: tuple[bytes, ...]
    pause: float = 0.0
    end: str = "wait"
    whole: bool = False


def make_request(draw: random.Random) -> Hostile:
    """One hostile request."""
    return draw.choice([hostile_body] * 6 + [hostile_head] * 3 + [hostile_wire] * 2 + [pipelined])(draw)


def hostile_body(draw: random.Random) -> Hostile:
    """Well-formed HTTP around a body that is not what it should be."""
    path, body = draw.choice(VALID)
    content = spoil_bytes(draw, spoil_json(draw, body)) if draw.random() < 0.3 else spoil_json(draw, body)
    kind = draw.choice(KINDS[:9]) if draw.random() < 0.1 else "application/json"
    return Hostile((request("POST", path, content, [f"Content-Type: {kind}"]),), whole=True)


def hostile_head(draw: random.Random) -> Hostile:
    """Methods, paths and headers that are unusual or wrong; the body is valid."""
    path, body = draw.choice(VALID)
    method = "POST"
    if draw.random() < 0.4:
        method, path = draw.choice(["GET", *METHODS]), draw.choice(ROUTES + PATHS)
    headers = draw.sample(HEADERS, draw.choice([0, 1, 1, 2]))
    headers.append(f"Content-Type: {draw.choice(KINDS) if draw.random() < 0.3 else 'application/json'}")
    version = draw.choice(["HTTP/1.1"] * 9 + ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.99", "http/1.1", "", "ICY"])
    length = draw.choice(LENGTHS) if draw.random() < 0.2 else None
    end = "half" if length or method not in ("GET", "POST") else draw.choice(["wait", "half"])
    return Hostile((request(method, path, encode(body), headers, version, length),), end="half" if end == "wait" else end)


def hostile_wire(draw: random.Random) -> Hostile:
    """A valid request that comes in pieces, in chunks, in part, or changed on its way."""
    path, body = draw.choice(VALID)
    content = encode(body)
    valid = request("POST", path, content, ["Content-Type: application/json"])
    how = draw.choice(["slow", "cut", "cut", "chunks", "bad chunks", "changed", "both lengths", "noise", "long"])
    if how == "slow":
        places = sorted(draw.sample(range(1, len(valid)), 4))
        pieces = [valid[a:b] for a, b in zip([0, *places], [*places, len(valid)], strict=True)]
        return Hostile(tuple(pieces), pause=0.02, whole=True)
    if how == "cut":
        return Hostile((valid[: draw.randrange(len(valid))],), end=draw.choice(["half", "leave"]))
    if how in ("chunks", "bad chunks"):
        size = draw.choice(["-1", "ffffffffffffffffff", "zz", "", "5;x=" + "y" * 9000]) if how == "bad chunks" else None
        chunks = b"".join(f"{size or f'{len(c):x}'}\r\n".encode() + c + b"\r\n" for c in (content[:7], content[7:]))
        head = head_of("POST", path, ["Content-Type: application/json", "Transfer-Encoding: chunked"])
        whole = how == "chunks"
        return Hostile((head, chunks + b"0\r\n\r\n"), end="wait" if whole else "half", whole=whole)
    if how == "both lengths":
        return Hostile((request("POST", path, content, ["Transfer-Encoding: chunked"]),), end="half")
    if how == "noise":
        return Hostile((draw.randbytes(draw.choice([1, 50, 5000])),), end="half")
    if how == "long":
        return Hostile((head_of("POST", path, [f"A{i}: {'b' * 900}" for i in range(200)]),), end="half")
    return Hostile((spoil_bytes(draw, valid),), end="half")


def pipelined(draw: random.Random) -> Hostile:
    """Several requests at once on one connection; the last may be cut."""
    parts = [make_part(draw) for _ in range(draw.randint(2, 5))]
    return Hostile((b"".join(parts)[: None if draw.random() < 0.5 else -3],), end=draw.choice(["half", "leave"]))


def make_part(draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return request("GET", draw.choice(ROUTES), b"", [])
    path, body = draw.choice(VALID)
    return request("POST", path, spoil_json(draw, body), ["Content-Type: application/json"])


def request(
    method: str, path: str, content: bytes, headers: list[str], version: str = "HTTP/1.1", length: str | None = None
) -> bytes:
    said = str(len(content)) if length is None else length
    return head_of(method, path, [f"Content-Length: {said}", *headers], version) + content


def head_of(method: str, path: str, headers: list[str], version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "Host: localhost", *headers, "", ""]).encode("latin-1", "replace")


def encode(body: Any) -> bytes:
    return json.dumps(body).encode()


def spoil_json(draw: random.Random, body: Any) -> bytes:
    """A body with some of its keys and values changed, as JSON or nearly so."""
    marks: dict[str, str] = {}

    def value() -> Any:
        kind = draw.choice(["raw", "raw", "text", "text", "plain", "nested"])
        if kind == "text":
            return draw.choice(HOSTILE)
        if kind == "plain":
            return draw.choice([None, True, False, 0, -1, 2**63, 0.5, [], {}, [[]], [None], "", " ", "x" * 30_000])
        if kind == "nested":
            return {draw.choice(KEYS): value()} if draw.random() < 0.5 else [value() for _ in range(draw.randint(0, 3))]
        mark = "".join(draw.choices(string.ascii_letters, k=20))  # replaced in the JSON, which may then be none
        marks[mark] = draw.choice(RAW)
        return mark

    def spoil(node: Any) -> Any:
        if draw.random() < 0.25 or not isinstance(node, (dict, list)):
            return value() if draw.random() < 0.5 else node
        if isinstance(node, list):
            known = len(marks)
            children = [spoil(child) for child in node]
            many = draw.random() < 0.1 and len(marks) == known and len(json.dumps(children)) < 300
            return children * 300 if many else children
        pairs = [(draw.choice(KEYS) if draw.random() < 0.1 else key, spoil(child)) for key, child in node.items()]
        return dict(pairs if draw.random() < 0.9 else pairs[1:])

    plain = json.dumps(spoil(body))
    for mark, raw in marks.items():
        plain = plain.replace(f'"{mark}"', raw)
    return plain.encode("utf-8", "surrogatepass")


def spoil_bytes(draw: random.Random, content: bytes) -> bytes:
    """The same with a few bytes changed, or in another encoding."""
    how: Callable[[bytes], bytes] = draw.choice([
        lambda b: b[: draw.randrange(len(b) + 1)],
        lambda b: b + draw.randbytes(3),
        lambda b: b[: (i := draw.randrange(len(b) + 1))] + draw.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b"\xc0\x80", b"\r\n"]) + b[i:],
        lambda b: b.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]), "replace"),
        lambda b: bytes(byte ^ (1 << draw.randrange(8)) if draw.random() < 0.01 else byte for byte in b),
    ])  # fmt: skip
    return how(content)
