"""What the stand-in hub does with uploads: repositories are made, large files stored by digest, and commits applied."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hub.server import Hub, Repo

TOKEN, ORG = "hf_stand_in", "stand-in"  # the token may write to this organization
LARGE = (".safetensors", ".parquet")
Reply = tuple[int, Any]


@dataclass
class Upload:
    """One request to write: `rest` is what follows the repository's address."""

    hub: Hub
    body: bytes
    kind: str
    repo_id: str
    rest: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def repo(self) -> Repo:
        return self.hub.repos[self.kind, self.repo_id]

    def preupload(self) -> Reply:
        """How each file is to be sent, and the digest of what is there."""
        files = []
        for name in (file["path"] for file in self.json["files"]):
            content = self.repo.files.get(name)
            large = name.endswith(LARGE)
            digest = hashlib.sha256 if large else lambda data: hashlib.sha1(b"blob %d\x00" % len(data) + data)
            oid = digest(content).hexdigest() if content is not None else None
            files.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def batch(self) -> Reply:
        """Where large files are to be put."""
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.hub.url}/large/{file['oid']}"}}} for file in self.json["objects"]
        ]
        return 200, {"objects": objects}

    def commit(self) -> Reply:
        files, lines = dict(self.repo.files), [json.loads(line) for line in self.body.splitlines()]
        for key, value in ((line["key"], line["value"]) for line in lines[1:]):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        made = self.hub.repos[self.kind, self.repo_id] = replace(self.repo, files=files)
        self.hub.commits.append(self.repo_id)
        return 200, {"commitUrl": f"{self.hub.url}/{self.repo_id}/commit/{made.commit}", "commitOid": made.commit}


ROUTES: list[tuple[str, Callable[[Upload], Reply]]] = [
    (r"^/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)/preupload/main$", Upload.preupload),
    (r"^/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)/commit/main$", Upload.commit),
    (r"^/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch$", Upload.batch),
]


def reply_to_upload(hub: Hub, path: str, authorization: str | None, body: bytes) -> Reply | None:
    """The status and JSON of a request to write, or None for any other request."""
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path.startswith("/large/"):
        digest = hashlib.sha256(body).hexdigest()
        hub.large[digest] = body
        return (200, {}) if path.endswith(digest) else (400, {"error": "another content"})
    if path == "/api/repos/create":
        return refusal(authorization, json.loads(body)["organization"]) or create(hub, json.loads(body))
    for pattern, action in ROUTES:
        if match := re.match(pattern, path):
            upload = Upload(hub, body, match["kind"] or "models", match["id"], path)
            return refusal(authorization, upload.repo_id.partition("/")[0]) or action(upload)
    return None


def refusal(authorization: str | None, organization: str) -> Reply | None:
    if authorization != f"Bearer {TOKEN}":
        return 401, {"error": "Invalid username or password."}
    return None if organization == ORG else (403, {"error": f"You don't have the rights to write to {organization}"})


def create(hub: Hub, wish: dict[str, Any]) -> Reply:
    from tests.hub.server import Repo

    kind, repo_id = f"{wish.get('type', 'model')}s", f"{wish['organization']}/{wish['name']}"
    hub.repos[kind, repo_id] = Repo(kind, repo_id, {".gitattributes": b""}, private=wish.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{repo_id}"}
