"""A hub of models on this machine: the routes that huggingface_hub's client asks for a snapshot, over real files."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One model, with one commit. Files of `.safetensors` are large ones."""

    url: str
    name: str
    folder: Path
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""
    broken: set[str] = field(default_factory=set)
    """Files that come with other bytes than the hub says."""

    def describe(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        entry = {"type": "file", "path": str(path.relative_to(self.folder)), "size": len(content)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.suffix == ".safetensors":
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return entry

    def describe_sibling(self, path: Path) -> dict[str, Any]:
        """As with `blobs=true`."""
        told = self.describe(path)
        lfs = {"lfs": told["lfs"] | {"sha256": told["lfs"]["oid"]}} if "lfs" in told else {}
        return {"rfilename": told["path"], "size": told["size"], "blobId": told["oid"], **lfs}

    def list_files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if re.fullmatch(rf"/api/models/{self.name}/revision/(main|{COMMIT})", path):
            siblings = [self.describe_sibling(file) for file in self.list_files()]
            return 200, {}, json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()
        if path == f"/api/models/{self.name}/tree/{COMMIT}":
            return 200, {}, json.dumps([self.describe(file) for file in self.list_files()]).encode()
        file = self.folder / path.removeprefix(f"/{self.name}/resolve/{COMMIT}/")
        if path.startswith(f"/{self.name}/resolve/{COMMIT}/") and file.is_file():
            told, content = self.describe(file), file.read_bytes()
            etag = told["lfs"]["oid"] if "lfs" in told else told["oid"]
            if file.name in self.broken:
                content = content[:-1] + bytes([content[-1] ^ 1])
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content
        code = "RevisionNotFound" if path.startswith(f"/api/models/{self.name}/") else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b"{}"


@contextmanager
def serve_hub(name: str, folder: Path) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, content = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for header, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}", name, folder)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
