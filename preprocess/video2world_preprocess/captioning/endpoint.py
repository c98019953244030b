"""Ask an OpenAI-compatible chat endpoint, patiently, for answers to requests with pictures.

The protocol is ``POST /v1/chat/completions`` with ``image_url`` parts:
https://platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx2

from video2world_common.exit_codes import UserError
from video2world_preprocess.captioning.frames import Frame
from video2world_preprocess.stage_report import printable

__all__ = [
    "Answer",
    "Endpoint",
    "EndpointUnusable",
    "RequestRefused",
    "Unanswered",
    "Usage",
    "checked_url",
]

RETRIES = 5  # per request, on failures that may pass
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, doubled each time
LONGEST_RETRY_AFTER = 600.0  # seconds that a server's Retry-After is obeyed
MAX_RESPONSE = 4 << 20  # bytes
TRANSIENT = (408, 409, 425, 429)  # and 500 to 599
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "caption",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"caption": {"type": "string"}},
            "required": ["caption"],
            "additionalProperties": False,
        },
    },
}


class EndpointUnusable(UserError):
    """The endpoint would refuse every request: wrong address, model or token."""


class Unanswered(Exception):
    """The endpoint did not answer a request after all retries; the message says why."""


class RequestRefused(Exception):
    """The endpoint refuses the request (status 4xx); the message says why."""


class _TryAgain(Exception):
    """A failure that may pass, after the ``pause`` in seconds that the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Answer:
    """The text of an answer; ``complete`` is false if it was cut off at the token limit."""

    text: str
    complete: bool


@dataclass
class Usage:
    """What was sent and used so far."""

    requests: int = 0
    retries: int = 0
    images: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def checked_url(url: str) -> str:
    """Return the base URL without a trailing slash.

    Raises:
        UserError: it is not the URL of an HTTP service, or contains a password.
    """
    if not re.fullmatch(r"https?://[^\s/@?#$\\]+(/[^\s@?#$\\]*)?", url):
        raise UserError(
            "--endpoint: give the base URL of an OpenAI-compatible API, such as "
            "http://vllm:8000/v1, without user name, query and fragment (the token is read from "
            "CAPTIONS_TOKEN)"
        )
    return url.rstrip("/")


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint; an asynchronous context manager.

    ``url`` is the base URL, usually ending in ``/v1``; ``timeout`` is in seconds for one request;
    ``connections`` is the number of simultaneous requests.
    """

    url: str
    model: str
    token: str
    max_tokens: int
    timeout: float
    connections: int
    usage: Usage = field(default_factory=Usage)
    _not_before: float = 0.0  # time.monotonic() until which the server wants no requests
    _limit_name: str = "max_tokens"

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=self.timeout,
            limits=httpx2.Limits(max_connections=self.connections),
            follow_redirects=False,  # the pictures and the token are for this server only
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def ask(self, prompt: str, frames: Sequence[Frame], *, structured: bool) -> Answer:
        """Return the answer to ``prompt`` about ``frames``.

        Raises:
            Unanswered: there is none after all retries.
            RequestRefused: the endpoint refuses this request.
            EndpointUnusable: it would refuse every request: wrong address, model or token.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for frame in frames:
            content.append({"type": "text", "text": f"Frame at {frame.seconds:.2f} s:"})
            content.append({"type": "image_url", "image_url": {"url": frame.url}})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
        }
        if structured:
            body["response_format"] = SCHEMA
        for attempt in range(RETRIES + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            self.usage.requests += 1
            self.usage.retries += attempt > 0
            self.usage.images += len(frames)
            try:
                return await self._attempt(body)
            except _TryAgain as error:
                if attempt == RETRIES:
                    raise Unanswered(str(error)) from None
                pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
                if error.pause:  # for all requests: the others would be refused, too
                    until = time.monotonic() + min(error.pause, LONGEST_RETRY_AFTER)
                    self._not_before = max(self._not_before, until)
                else:
                    await asyncio.sleep(pause)
        raise AssertionError

    async def _attempt(self, body: dict[str, Any]) -> Answer:
        url = f"{self.url}/chat/completions"
        content = json.dumps(body | {self._limit_name: self.max_tokens}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self.timeout),  # httpx2's own is per read
                self._client.stream("POST", url, content=content, headers=headers) as response,
            ):
                data = b""
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > MAX_RESPONSE:
                        raise _TryAgain(f"it sends more than {MAX_RESPONSE} bytes")
        except TimeoutError:
            raise _TryAgain(f"no answer within {self.timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise _TryAgain(str(error) or type(error).__name__) from None
        self._check(response, data)
        return self._parsed(data)

    def _check(self, response: httpx2.Response, data: bytes) -> None:
        """Raise the error that the response's status stands for."""
        status, says = response.status_code, self._message_in(data)
        if status == 200:
            return
        if status in TRANSIENT or status >= 500:
            raise _TryAgain(f"status {status}: {says}", _retry_after(response.headers))
        if status in (401, 403):
            given = "the token" if self.token else "a request without token"
            raise EndpointUnusable(
                f"{self.url} does not accept {given} ({status}: {says}): set "
                "spec.dataset.captions.tokenSecret (by hand: CAPTIONS_TOKEN) to a valid one"
            )
        if status == 404 or 300 <= status < 400:
            raise EndpointUnusable(
                f"{self.url} has no chat completions for model {self.model} ({status}: {says}): "
                "correct spec.dataset.captions.endpoint (usually ending in /v1) or model"
            )
        if "max_completion_tokens" in says and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # as OpenAI's newer models call it
            raise _TryAgain(f"status {status}: {says}")
        raise RequestRefused(f"status {status}: {says}")

    def _parsed(self, data: bytes) -> Answer:
        try:
            value = json.loads(data)
            choice = value["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise _TryAgain(
                f"the response is not a chat completion: {self._message_in(data)}"
            ) from None
        if isinstance(text, list):
            parts = (part.get("text") for part in text if isinstance(part, dict))
            text = "".join(part for part in parts if isinstance(part, str))
        used = value.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            count = used.get(name) if isinstance(used, dict) else None
            if isinstance(count, int) and 0 <= count < 1 << 40:
                setattr(self.usage, name, getattr(self.usage, name) + count)
        return Answer(str(text), choice.get("finish_reason") != "length")

    def _message_in(self, data: bytes) -> str:
        """Return the start of a response's message, without the token, which it may repeat."""
        text = " ".join(_text_in(data).split())
        if self.token:
            text = text.replace(self.token, "***")
        return printable(text[:200]) or "empty"


def _text_in(data: bytes) -> str:
    """Return the message of an error response, else its text."""
    try:
        error = json.loads(data)["error"]
        return error if isinstance(error, str) else str(error["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        text = data.decode("utf-8", "replace").strip()
        if text[:1] == "<":
            text = f"HTML: {re.sub(r'<[^>]*>|[{][^}]*[}]', ' ', text[:20_000])}"
        return text


def _retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds that a response asks to wait, given as a number or a date; else 0."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
