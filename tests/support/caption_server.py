"""Serve the part of OpenAI's chat protocol that captions use, with faults on request."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

# What to do about the n-th request (from 0): a text is the answer; a number is a status.
Fault = str | int | dict[str, Any] | None


@dataclass
class Request:
    """One request: its body, and what it was answered with."""

    body: dict[str, Any]
    authorization: str | None
    status: int = 0

    @property
    def texts(self) -> list[str]:
        return [p["text"] for p in self.body["messages"][0]["content"] if p["type"] == "text"]

    @property
    def pictures(self) -> list[bytes]:
        parts = self.body["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def video(self) -> str:
        """Identifies the video by its pictures."""
        return hashlib.sha256(b"".join(self.pictures)).hexdigest()[:8]


@dataclass
class Script:
    """What the server does; ``fault`` gets a request and its number."""

    fault: Callable[[Request, int], Fault] = lambda request, number: None
    token: str | None = None  # the only one accepted
    headers: dict[str, str] = field(default_factory=dict)  # of faults
    seconds: float = 0.0  # before each answer


class CaptionServer(ThreadingHTTPServer):
    """An endpoint on this machine; ``requests`` are those that arrived, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.requests = Script(), list[Request]()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.active = self.most_active = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def answered(self) -> list[str]:
        """The videos of the requests that were answered."""
        return [request.video for request in self.requests if request.status == 200]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CaptionServer

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        server = self.server
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(json.loads(data), self.headers.get("Authorization"))
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            self._answer(request, number)
        finally:
            with server.lock:
                server.active -= 1

    def _answer(self, request: Request, number: int) -> None:
        server, script = self.server, self.server.script
        if self.path != "/v1/chat/completions":
            return self._send(request, 404, {"error": {"message": "no such route"}})
        if script.token and request.authorization != f"Bearer {script.token}":
            said = f"Incorrect API key provided: {request.authorization}"
            return self._send(request, 401, {"error": {"message": said}})
        for picture in request.pictures:
            Image.open(io.BytesIO(picture)).load()
        time.sleep(script.seconds)
        fault = script.fault(request, number)
        if fault == "stall":
            server.stop.wait(60)
            return None
        if fault == "html":
            return self._send(request, 200, b"<html><body>Gateway <b>login</b></body></html>")
        if isinstance(fault, int):
            message = {"error": {"message": f"fault {fault}, you sent {request.authorization}"}}
            return self._send(request, fault, message)
        if isinstance(fault, dict):
            return self._send(request, fault.get("status", 200), fault["body"])
        text = caption_for(request) if fault is None else fault
        return self._send(request, 200, completion(text))

    def _send(self, request: Request, status: int, content: dict[str, Any] | bytes) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.status = status
        self.send_response(status)
        if status != 200:
            for name, value in self.server.script.headers.items():
                self.send_header(name, value)
        kind = "text/html" if isinstance(content, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def caption_for(request: Request) -> str:
    """The answer without a fault: it identifies the video by its pictures."""
    return f"A robot arm moves a cube in scene {request.video}. The gripper then opens."


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """A response of the protocol."""
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020},
    }


@contextmanager
def caption_server() -> Iterator[CaptionServer]:
    """Serve on a free port of this machine."""
    server = CaptionServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
