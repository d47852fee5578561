"""A Hub on localhost: as much of its API as a push needs, with what was pushed."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_of_the_local_hub"


class LocalHub(ThreadingHTTPServer):
    """Serves from `with` to its end.

    Args:
        public: repositories that are there already, by id.
    """

    def __init__(self, public: tuple[str, ...] = ()):
        super().__init__(("localhost", 0), Handler)
        self.private = dict.fromkeys(public, False)
        """Whether a repository is private, by id."""
        self.files: dict[str, bytes] = {}
        """What was committed, by repository and path."""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"

    def __enter__(self):
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *args): ...

    def answer(self, status: int, content: dict) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def is_known(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def do_GET(self):
        repo_id = self.path.removeprefix("/api/models/").partition("?")[0]
        if repo_id in self.server.private:
            self.answer(200, {"id": repo_id, "private": self.server.private[repo_id]})
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        if not self.is_known():
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
            there = repo_id in hub.private
            hub.private.setdefault(repo_id, asked.get("visibility") == "private")
            self.answer(409 if there else 200, {"url": f"{hub.url}/{repo_id}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {})
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": file["path"]} | modes for file in json.loads(content)["files"]]})
        elif "/commit/" in self.path:
            repo_id = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    hub.files[f"{repo_id}/{file['path']}"] = base64.b64decode(file["content"])
            self.answer(200, {"commitUrl": f"{hub.url}/{repo_id}/commit/1", "commitOid": "1"})
        else:
            self.answer(404, {"error": "not found"})
