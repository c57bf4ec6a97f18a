"""A stand-in for the model hub on loopback, which HF_ENDPOINT names: no other host is ever asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.uploads import reply_to_upload


@dataclass(frozen=True)
class Repo:
    """A repository of one commit: file name → content."""

    kind: str  # "models" or "datasets", as in the hub's API
    id: str
    files: dict[str, bytes]
    private: bool = False

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(self.id.encode())
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def info(self) -> dict[str, Any]:
        names = [{"rfilename": name} for name in sorted(self.files)]
        plain = {"_id": "0" * 24, "id": self.id, "sha": self.commit, "siblings": names, "private": self.private, "gated": False}
        return plain | {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": "2024-01-01T00:00:00.000Z"}

    def entries(self) -> dict[str, dict[str, Any]]:
        """Path → tree entry, of every file and every folder."""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(self.files.items()):
            for parent in Path(name).parents:
                if str(parent) != ".":
                    entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
            entries[name] = {"type": "file", "path": name, "oid": etag(content), "size": len(content)}
        return entries


def etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """The repositories of a running server."""

    repos: dict[tuple[str, str], Repo]
    uploads: Path  # a model put here, at OWNER/NAME, is on the hub from then on
    url: str = ""
    large: dict[str, bytes] = field(default_factory=dict)  # uploaded files by SHA-256
    commits: list[str] = field(default_factory=list)  # repositories, one for each commit pushed

    def find(self, kind: str, repo_id: str) -> Repo | None:
        folder = self.uploads / repo_id
        if kind == "models" and folder.is_dir():
            return Repo(kind, repo_id, {p.name: p.read_bytes() for p in folder.iterdir()})
        return self.repos.get((kind, repo_id))


ROUTE = re.compile(
    r"^/api/(?P<api>models|datasets)/(?P<api_id>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<api_revision>[^/]+)(?:/(?P<folder>.+))?)?$"
    r"|^/(?P<datasets>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$"
)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Answers as the public hub does, as far as loading a model or data set needs it; no redirects, no Xet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code: str, commit: str | None = None) -> None:
            known = {"X_Repo_Commit": commit} if commit else {}
            self.answer(404, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code, **known)

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            if upload := reply_to_upload(hub, unquote(url.path), self.headers.get("Authorization"), body):
                status, reply = upload
                self.answer(status, json.dumps(reply).encode(), Content_Type="application/json")
                return
            sent = body.decode()
            route = ROUTE.match(unquote(url.path))
            if route is None:
                self.refuse("EntryNotFound")
                return
            kind = route["api"] or ("datasets" if route["datasets"] else "models")
            repo = hub.find(kind, route["api_id"] or route["id"])
            if repo is None:
                self.refuse("RepoNotFound")
            elif (route["api_revision"] or route["revision"] or "main") not in ("main", repo.commit):
                self.refuse("RevisionNotFound")
            elif route["file"]:
                self.send_file(repo, route["file"])
            else:
                self.send_listing(repo, route, "recursive" in url.query and "recursive=False" not in url.query, sent)

        def send_file(self, repo: Repo, name: str) -> None:
            content = repo.files.get(name)
            if content is None:
                self.refuse("EntryNotFound", repo.commit)
                return
            headers = {"ETag": f'"{etag(content)}"', "X_Repo_Commit": repo.commit, "Accept_Ranges": "bytes"}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if part:
                start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
                headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
                self.answer(206, content[start : end + 1], **headers)
            else:
                self.answer(200, content, **headers)

        def send_listing(self, repo: Repo, route: re.Match[str], recursive: bool, sent: str) -> None:
            entries, folder = repo.entries(), (route["folder"] or "").strip("/")
            if route["what"] == "tree":
                if folder and entries.get(folder, {}).get("type") != "directory":
                    self.refuse("EntryNotFound", repo.commit)
                    return
                within = {p: e for p, e in entries.items() if not folder or p.startswith(folder + "/")}
                answer: Any = [e for p, e in within.items() if recursive or str(Path(p).parent) == (folder or ".")]
            elif route["what"] == "paths-info":
                paths = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent).get("paths", [])
                answer = [entries[p] for p in ([paths] if isinstance(paths, str) else paths) if p in entries]
            else:
                answer = repo.info()
            self.answer(200, json.dumps(answer).encode(), Content_Type="application/json", X_Repo_Commit=repo.commit)

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

    return Handler


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
