"""A web server for a folder, or in front of another server, that answers as badly as asked."""

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer:
    """Serves `folder`; each request for a file may meet one of these faults instead of an answer.

    Faults: `500`, `503`, `404` (that status), `reset` (the connection is reset in the middle of the body), `short` (it
    is closed there), `stall` (nothing comes after the middle), `trickle` (twenty bytes a second), `garbage` (other bytes
    of the right number).

    Args:
        faults: file name -> what happens to the first, second, ... request for it; "" answers well, as do all later ones.
            "*" stands for every other name. A fault followed by "!" happens to all later ones too.
        ranges: whether requests for a part of a file are understood.
        upstream: (host, port) of the server whose answers are passed on, in place of the folder's files.
    """

    def __init__(
        self,
        folder: Path,
        faults: dict[str, list[str]] | None = None,
        ranges: bool = True,
        upstream: tuple[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self.upstream = upstream
        self.faults = faults or {}
        self.ranges = ranges
        self.requests: Counter[str] = Counter()  # by file name
        self.met: Counter[str] = Counter()  # faults injected
        self.bytes_sent = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def next_fault(self, name: str) -> str:
        with self._lock:
            plan = self.faults.get(name, self.faults.get("*", []))
            number = self.requests[name]
            self.requests[name] += 1
            fault = plan[number] if number < len(plan) else plan[-1] if plan and plan[-1].endswith("!") else ""
            fault = fault.removesuffix("!")
            if fault:
                self.met[fault] += 1
            return fault


@contextmanager
def serve(server: FaultyServer) -> Iterator[str]:
    """Run the server in a thread and give its address."""

    class Handler(_Handler):
        faulty = server

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_address[1]}"
    finally:
        server.stopping.set()
        web.shutdown()
        web.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0].lstrip("/")
        fault = self.faulty.next_fault(name)
        if self.faulty.upstream:
            self._pass_on(fault)
            return
        file = self.faulty.folder / name
        if fault.isdigit() or not file.is_file():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        content = file.read_bytes()
        start = 0
        if self.faulty.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(asked[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body, fault)

    def do_HEAD(self) -> None:
        self._pass_on("")

    def _pass_on(self, fault: str) -> None:
        """Another server's answer, or the fault in its place."""
        assert self.faulty.upstream
        if fault.isdigit():
            self.send_error(int(fault))
            return
        upstream = http.client.HTTPConnection(*self.faulty.upstream)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        upstream.close()
        self._send(body, fault)

    def _send(self, body: bytes, fault: str) -> None:
        if fault == "garbage":
            body = bytes(len(body))
        sent = body[: len(body) // 2] if fault in ("reset", "short", "stall") else b"" if fault == "trickle" else body
        try:
            self.wfile.write(sent)
            self.wfile.flush()
            self.faulty.bytes_sent += len(sent)
            if fault == "stall":
                self.faulty.stopping.wait(30)
            for byte in body[len(sent) :] if fault == "trickle" else b"":
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
                if self.faulty.stopping.is_set():
                    break
        except OSError:
            return
        if fault == "reset":  # a linger time of 0 makes the close a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("reset", "short", "stall"):
            self.close_connection = True
            self.connection.close()
