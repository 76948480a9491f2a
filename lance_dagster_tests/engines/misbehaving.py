"""A server with the OpenAI interface that misbehaves on purpose, as each request's prompt tells it to.

``status 503 twice``: that status for the first two attempts, then an answer. The others: ``cut``, ``slow``,
``malformed`` and ``nonsense``, each ``once`` or ``always``; ``filtered``; ``too long``; anything else is echoed.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW = 5.0  # seconds


class Misbehaving(ThreadingHTTPServer):
    """Counts attempts per prompt, the requests that were open together, and what it was sent."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.attempts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.open = self.most_open = 0
        self.times: dict[str, list[float]] = {}
        self.served = "scripted"
        self.key: str | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    server: Misbehaving
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:  # the name that http.server calls
        if self._refused():
            return
        self._answer(200, json.dumps({"data": [{"id": self.server.served}]}))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with server.lock:
            server.attempts[prompt] += 1
            server.times.setdefault(prompt, []).append(time.monotonic())
            server.bodies.append(body)
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            if not self._refused():
                self._behave(prompt, server.attempts[prompt])
        finally:
            with server.lock:
                server.open -= 1

    def _refused(self) -> bool:
        key = self.headers.get("Authorization")
        self.server.keys.add(key)
        if self.server.key is None or key == f"Bearer {self.server.key}":
            return False
        self._answer(401, f"wrong key {key}")
        return True

    def _behave(self, prompt: str, attempt: int) -> None:
        times = 10**9 if "always" in prompt else 2 if "twice" in prompt else 1
        if attempt <= times:
            if status := re.match(r"status (\d+)", prompt):
                retry = {"Retry-After": "1"} if "wait" in prompt else {}
                self._answer(int(status[1]), f"this is {status[1]}", retry)
                return
            if prompt.startswith("cut"):
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if prompt.startswith("half"):
                self._answer(200, "{", {}, length=500)
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if prompt.startswith("slow"):
                time.sleep(SLOW)
            if prompt.startswith("malformed"):
                self._answer(200, '{"choices": [')
                return
            if prompt.startswith("nonsense"):
                self._answer(200, '{"choices": []}')
                return
        if prompt.startswith("too long"):
            self._answer(400, "This model's maximum context length is 512 tokens.")
            return
        finish = {"filtered": "content_filter", "truncated": "length"}.get(prompt.split()[0], "stop")
        time.sleep(0.01)
        choice = {"message": {"content": f"you said {prompt}"}, "finish_reason": finish}
        self._answer(200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}))

    def _answer(self, status: int, text: str, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode()) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())
        self.wfile.flush()


@contextmanager
def misbehaving_server() -> Iterator[Misbehaving]:
    server = Misbehaving()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
