"""An OpenAI-compatible endpoint as a back end: parallel requests, with patience for a slow, full or broken service."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.back_ends.base import BackEnd, BackEndUnusable, Reply, Unanswered
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import BackEndSettings
from cpo_ray.config.review import is_loopback
from cpo_ray.config.section import Free

MAX_RESPONSE = 2**20
LONGEST_PAUSE = 60.0
#: With these statuses every further request would fail the same way.
HOPELESS = {
    401: "it does not accept the key",
    402: "it wants to be paid",
    403: "it does not let this key in",
    404: "it has no such address or model",
    405: "its address is not that of an OpenAI-compatible service",
}
AGAIN = (408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529)


class _Failed(Exception):
    """A request that may be repeated."""


class _TooMuch(Exception):
    """The endpoint asks to wait, for this many seconds if it says how long."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("it has too much to do")
        self.seconds = seconds


@dataclass
class _Trouble:
    """The failures and waits of one question so far."""

    failures: int = 0
    pauses: int = 0
    waited: float = 0.0


class EndpointSettings(BackEndSettings):
    """An OpenAI-compatible service, such as vLLM with a vision model."""

    url: Free[str]
    """Address up to the version, such as http://127.0.0.1:8000/v1."""
    key_variable: Free[str | None] = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the key, on the actors' machines, too. The key itself is never written anywhere."""
    in_flight: Free[PositiveInt] = 32
    """Requests at the same time, per actor."""
    timeout_seconds: Free[PositiveFloat] = 120.0
    """Time limit of one request."""
    attempts: Free[PositiveInt] = 5
    """Requests per question that may fail with errors and time-outs. A request to wait does not count."""
    backoff_seconds: Free[PositiveFloat] = 1.0
    """The first pause after a failure. Each further pause may be twice as long, and is partly random."""
    patience_seconds: Free[PositiveFloat] = 900.0
    """How long one question may wait in total for an endpoint that reports overload."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = 1024
    """Longest answer in tokens."""
    price_in: Free[float] = Field(default=0.0, ge=0)
    """Price of a million tokens of questions and pictures, for the displayed cost."""
    price_out: Free[float] = Field(default=0.0, ge=0)
    """Price of a million tokens of answers, for the displayed cost."""

    @model_validator(mode="after")
    def _safe_url(self) -> EndpointSettings:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with http:// or https:// and name a host, such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query:
            raise ValueError("url must hold no user, password or query, since it is displayed; a key belongs into key_variable")
        if self.key_variable and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError("a key does not travel over http to another machine; write https, or leave key_variable out")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Without the url: the same model served elsewhere, or on another port after a restart, gives the same answers."""
        return {"back_end": self.kind, "model": self.model, "temperature": self.temperature}

    def lacks(self) -> str | None:
        if self.key_variable is None or os.environ.get(self.key_variable, "").strip():
            return None
        return f"back_end.key_variable is {self.key_variable}, which is not set on this machine; export it where the actors run"

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class EndpointBackEnd(BackEnd):
    """Keeps at most `in_flight` requests under way. The key exists in the request's header and nowhere else.

    Create it inside an event loop. Raises BackEndUnusable if the key's variable is not set.
    """

    settings = EndpointSettings

    def __init__(self, settings: EndpointSettings, device: str) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._open_at = 0.0
        self._random = random.Random()
        self._session = aiohttp.ClientSession(
            headers=_authorization(settings.key_variable),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Return one answer, after as many requests as needed.

        Raises Unanswered when `attempts` requests failed, the endpoint was full for longer than `patience_seconds`, or it refused
        this picture; BackEndUnusable when it would refuse every request.
        """
        body = request_body(self._settings, picture, question, complaint)
        trouble = _Trouble()
        calls = 0
        async with self._slots:
            while True:
                await self._until_open()
                calls += 1
                try:
                    return _reply(await self._post(body, calls), calls)
                except _TooMuch as told:
                    await self._wait_as_told(told.seconds, trouble, calls)
                except _Failed as problem:
                    trouble.failures += 1
                    if trouble.failures >= self._settings.attempts:
                        raise Unanswered(f"the endpoint failed {trouble.failures} times, lastly: {problem}", calls) from None
                    await asyncio.sleep(self._random.uniform(0, self._backoff(trouble.failures)))

    async def _post(self, body: bytes, calls: int) -> dict[str, Any]:
        """Send one request. Raises _Failed, _TooMuch, Unanswered or BackEndUnusable."""
        url = f"{self._settings.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        try:
            # A redirect could send the key to another host.
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                text = await _limited(response)
                retry_after = response.headers.get("Retry-After")
                status = response.status
        except TimeoutError:
            raise _Failed(f"no answer within {self._settings.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed(f"{type(error).__name__}: {error}") from None
        if status == 429 or (status == 503 and retry_after):
            raise _TooMuch(_seconds(retry_after))
        if status in AGAIN:
            raise _Failed(f"status {status}")
        if status in HOPELESS:
            raise BackEndUnusable(f"the endpoint {self._settings.url} answered {status}: {HOPELESS[status]}")
        if status != 200:
            raise Unanswered(f"the endpoint refused it with status {status}{self._said(text)}", calls)
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            raise _Failed("its response is not complete JSON") from None
        if not isinstance(envelope, dict):
            raise _Failed("its response is not a JSON object")
        return envelope

    async def _wait_as_told(self, seconds: float | None, trouble: _Trouble, calls: int) -> None:
        """Hold all requests back as long as the endpoint said, or for a growing pause. Raises Unanswered."""
        trouble.pauses += 1
        pause = self._backoff(trouble.pauses) if seconds is None else seconds
        trouble.waited += pause
        if trouble.waited > self._settings.patience_seconds:
            raise Unanswered(f"the endpoint had too much to do for {self._settings.patience_seconds:g} s", calls)
        self._open_at = max(self._open_at, time.monotonic() + pause)

    async def _until_open(self) -> None:
        """Wait for the end of a pause, each request a little longer, so that they do not all return at once."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left + self._random.uniform(0, min(left, self._settings.backoff_seconds)))

    def _backoff(self, number: int) -> float:
        """Return the longest pause in seconds after the given failure: twice as long each time."""
        return float(min(LONGEST_PAUSE, self._settings.backoff_seconds * 2 ** min(number - 1, 16)))

    def _said(self, text: bytes) -> str:
        """Return the message of an error, short and on one line, without a key that it may repeat."""
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        key = os.environ.get(self._settings.key_variable or "", "").strip()
        words = " ".join(str(message).replace(key, "…").split() if key else str(message).split())
        return f": {''.join(character for character in words if character.isprintable())[:200]}"


def request_body(settings: EndpointSettings, picture: Picture, question: Question, complaint: str) -> bytes:
    """Return the JSON of one request to `/chat/completions`."""
    seen = base64.b64encode(picture.seen).decode()
    said = f"{question.user} Your last answer could not be used: {complaint}. Answer again." if complaint else question.user
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{seen}"}},
        {"type": "text", "text": said},
    ]
    schema = {"name": "answer", "strict": True, "schema": question.schema}
    body = {
        "model": settings.model,
        "messages": [{"role": "system", "content": question.system}, {"role": "user", "content": content}],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
    }
    return json.dumps(body).encode()


def _reply(envelope: dict[str, Any], calls: int) -> Reply:
    """Return the answer in a response. Raises _Failed if there is none, Unanswered if the model refused."""
    try:
        choice = envelope["choices"][0]
        message = choice["message"]
        refusal, text = message.get("refusal"), message.get("content")
        filtered = choice.get("finish_reason") == "content_filter"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Failed("its response holds no message") from None
    if refusal or filtered:
        raise Unanswered("the model refused to answer", calls)
    if not isinstance(text, str):
        raise _Failed("its message holds no text")
    usage = envelope.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Reply(text, _count(tokens.get("prompt_tokens")), _count(tokens.get("completion_tokens")), calls)


def _count(number: Any) -> int:
    return number if isinstance(number, int) and number > 0 else 0


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a response. Raises _Failed if it exceeds a mebibyte."""
    parts = bytearray()
    async for part in response.content.iter_any():
        parts += part
        if len(parts) > MAX_RESPONSE:
            raise _Failed("its response is longer than a mebibyte")
    return bytes(parts)


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds in a Retry-After header, given as a number or a date; None if it cannot be read."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(retry_after).astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return None


def _authorization(variable: str | None) -> dict[str, str]:
    """Return the header with the key. Raises BackEndUnusable if its variable is not set."""
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BackEndUnusable(
            f"annotation.back_end.key_variable is {variable}, which is not set where the actors run; export it there"
        )
    if not key.isprintable() or not key.isascii():
        raise BackEndUnusable(f"what {variable} holds is not a key: it has characters that a header may not have")
    return {"Authorization": f"Bearer {key}"}
