"""A stand-in for a hub of models on this machine. Speaks what huggingface_hub's download and upload ask for, no more."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub:
    """What the stand-in holds, how it misbehaves, and what was uploaded to it.

    files:    {"owner/name/path": content} that it gives
    refusals: {"owner/name": (status, X-Error-Code)} for everything that is asked of a repository
    fault:    {"owner/name": "short" or "wrong hash"}: a body that ends early, or another one than announced
    created:  what was asked for as repositories
    uploads:  {"owner/name": {path: content}} that it was given
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.fault: dict[str, str] = {}
        self.created: list[dict[str, object]] = []
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256, as LFS uploads them
        self.address = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers on `hub.address` for as long as the context lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            repo, _, place = self.path.lstrip("/").partition("/resolve/")
            name = f"{repo}/{place.partition('/')[2]}"
            if repo in hub.refusals:
                status, code = hub.refusals[repo]
                self.answer(status, **({"X_Error_Code": code} if code else {}))
            elif not any(file.startswith(f"{repo}/") for file in hub.files):
                self.answer(404, X_Error_Code="RepoNotFound")
            elif name not in hub.files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content, fault = hub.files[name], hub.fault.get(repo)
                digest = hashlib.sha256(content).hexdigest()
                facts = {"X_Repo_Commit": COMMIT, "X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
                body = {"short": content[:-1], "wrong hash": content[:-1] + b"!"}.get(fault or "", content)
                self.answer(200, body, ETag=f'"{digest}"', **facts)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            asked = json.loads(body) if path == "/api/repos/create" else {}
            repo = f"{asked['organization']}/{asked['name']}" if asked else ""
            refused = next((name for name in hub.refusals if name == repo or f"/{name}/" in path), None)
            if refused is not None:
                self.answer(hub.refusals[refused][0])
            elif asked:
                hub.created.append(asked)
                self.json({"url": f"{hub.address}/{repo}"})
            elif path == "/api/validate-yaml":  # of the card
                self.json({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = [{"path": f["path"], "uploadMode": self.mode(f["path"])} for f in json.loads(body)["files"]]
                self.json({"files": [f | {"shouldIgnore": False, "oid": None} for f in files]})
            elif path.endswith("/info/lfs/objects/batch"):
                href = f"{hub.address}/lfs/"
                objects = [o | {"actions": {"upload": {"href": href + o["oid"]}}} for o in json.loads(body)["objects"]]
                self.json({"transfer": "basic", "objects": objects})
            elif "/commit/" in path:
                repo = path.removeprefix("/api/models/").partition("/commit/")[0]
                self.commit(repo, body)
                self.json({"commitUrl": f"{hub.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.answer(404)

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200)

        def mode(self, path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        def json(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def commit(self, repo: str, body: bytes) -> None:
            files = hub.uploads.setdefault(repo, {})
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
