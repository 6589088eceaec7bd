"""A Hugging Face hub of a few repositories on loopback, as far as huggingface_hub asks: what a repository holds at a
commit, and its files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Files = Mapping[str, bytes]


class Hub(ThreadingHTTPServer):
    """`repositories`: files by 'org/name' (a dataset's by 'datasets/org/name'). `gated`: those whose terms nobody accepted.
    `asked`: the paths of all requests. `broken`: it answers nothing but 503."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Files], gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.gated = repositories, gated
        self.asked: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        if self.server.broken:
            return self.refuse(503, None)
        api = path.startswith("api/")
        rest = path.removeprefix("api/").removeprefix("models/")
        name = next((name for name in self.server.repositories if rest == name or rest.startswith(f"{name}/")), None)
        if name is None:
            return self.refuse(404, "RepoNotFound")
        words = rest.removeprefix(name).strip("/").split("/")
        if (words[0] in ("revision", "tree", "resolve") and words[1] not in ("main", COMMIT)) or words[0] == "refs":
            return self.refuse(404, "RevisionNotFound")
        if name in self.server.gated and words[0] == "resolve":
            return self.refuse(403, "GatedRepo")
        return self.say(name, words) if api else self.give(self.server.repositories[name].get("/".join(words[2:])))

    def do_HEAD(self) -> None:
        self.do_GET()

    def say(self, name: str, words: list[str]) -> None:
        """What a repository is, or the list of its files."""
        files = self.server.repositories[name]
        if words[0] == "tree":
            listed: object = [
                {"type": "file", "path": path, "size": len(data), "oid": oid(data)} for path, data in files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in files]
            listed = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def give(self, data: bytes | None) -> None:
        if data is None:
            return self.refuse(404, "EntryNotFound")
        return self.send(200, data, {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT})

    def refuse(self, status: int, code: str | None) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"refused: {code}"} if code else {})

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        pass


def oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(repositories: Mapping[str, Files], gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    with Hub(repositories, gated) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
