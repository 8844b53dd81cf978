"""A hub on this machine that the real client talks to: branches, commits, files; enough to push and to fetch."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories by name; each a dict of branches, each a dict of files. `asked` lists the requests."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.address = ""

    def commit(self, repo: str, revision: str) -> str | None:
        """Hash of what a branch holds; the hash itself is a revision too."""
        for branch, files in self.repos.get(repo, {}).items():
            text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())})
            found = hashlib.sha1((repo + branch + text).encode()).hexdigest()
            if revision in (branch, found):
                return found
        return None

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        return next(f for branch, f in self.repos[repo].items() if self.commit(repo, branch) == commit)


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub for the length of the block."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_args) -> None:
        pass

    def _say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value) -> None:
        self._say(200, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._say(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo, revision = found[1], found[2] or "main"
            commit = self.hub.commit(repo, revision)
            if commit is None:
                return self._missing("RevisionNotFound" if repo in self.hub.repos else "RepoNotFound")
            names = [{"rfilename": name} for name in self.hub.files(repo, commit)]
            return self._json({"id": repo, "sha": commit, "siblings": names})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
            files = self.hub.files(found[1], self.hub.commit(found[1], found[2]) or "")
            sizes = [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                     for n, d in files.items()]  # fmt: skip
            return self._json(sizes)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self.hub.commit(found[1], found[2])
            data = None if commit is None else self.hub.files(found[1], commit).get(found[3])
            if data is None:
                return self._missing("EntryNotFound")
            return self._say(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit or "")
        return self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, [given.get("organization"), given["name"]]))
            self.hub.repos.setdefault(name, {"main": {}})
            return self._json({"url": f"{self.hub.address}/{name}"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.hub.repos[found[1]]
            branches.setdefault(found[2], dict(branches["main"]))
            return self._json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": modes})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repos[found[1]][found[2]][line["value"]["path"]] = content
            commit = self.hub.commit(found[1], found[2])
            url = f"{self.hub.address}/{found[1]}/commit/{commit}"
            return self._json({"commitUrl": url, "commitOid": commit})
        return self._missing("RepoNotFound")
