"""An OpenAI-compatible endpoint as a back end: parallel requests, with patience for a slow, full or broken service."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.back_ends.base import BackEnd, BackEndUnusable, Reply, Unanswered
from cpo_ray.annotation.back_ends.endpoint_settings import EndpointSettings
from cpo_ray.annotation.back_ends.protocol import RequestForm, out_of_quota, reason_in, request_body, seconds_in
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.text import redacted

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


_LEAST_PAUSE = 0.01
_LOG = logging.getLogger(__name__)


class _Failed(Exception):
    """A request that may be repeated."""


class _Refused(Exception):
    """The endpoint refuses a part of the request; without it, it may answer."""


class _TooMuch(Exception):
    """The endpoint asks to wait, for this many seconds if it says how long. The message is its reason."""

    def __init__(self, seconds: float | None, reason: str) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass
class _Trouble:
    """The failures and waits of one question so far."""

    failures: int = 0
    pauses: int = 0
    waited: float = 0.0


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
        self._form = RequestForm()
        self._session = aiohttp.ClientSession(
            headers=_authorization(settings.key_variable),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=settings.proxy,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Return one answer, after as many requests as needed.

        Raises Unanswered when `attempts` requests failed, the endpoint was full for longer than `patience_seconds`, or it refused
        this picture; BackEndUnusable when it would refuse every request.
        """
        trouble = _Trouble()
        calls = 0
        async with self._slots:
            while True:
                await self._until_open()
                calls += 1
                form = self._form
                try:
                    envelope = await self._post(request_body(self._settings, picture, question, complaint, form), calls)
                    return self._reply(envelope, calls)
                except _Refused as told:
                    self._learn(form, str(told), calls)
                except _TooMuch as told:
                    await self._wait_as_told(told, trouble, calls)
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
            raise _Failed(redacted(f"{type(error).__name__}: {error}")) from None
        self._check_status(status, text, retry_after, response.headers.get("Location", ""))
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            raise _Failed("its response is not complete JSON") from None
        if isinstance(envelope, list) and len(envelope) == 1:
            (envelope,) = envelope
        if not isinstance(envelope, dict):
            raise _Failed("its response is not a JSON object")
        return envelope

    def _check_status(self, status: int, text: bytes, retry_after: str | None, location: str) -> None:
        """Raise _Failed, _TooMuch, _Refused or BackEndUnusable for a status that is not that of an answer."""
        if status == 200:
            return
        reason = self._reason(text)
        quoted, url = f": {reason}" if reason else "", self._settings.url
        if 300 <= status < 400:
            place = location.partition("?")[0][:200]
            raise BackEndUnusable(f"the endpoint {url} redirects to {place}; if you trust that address, write it as url")
        if status in (402, 403, 429) and out_of_quota(reason, text):
            raise BackEndUnusable(f"the endpoint {url} answered {status}: the quota or the credit is used up{quoted}")
        if status == 429 or (status == 503 and retry_after):
            raise _TooMuch(seconds_in(retry_after), reason)
        if status in AGAIN:
            raise _Failed(f"status {status}{quoted}")
        if status in HOPELESS:
            version = "" if status not in (404, 405) or re.search(r"/v\d", url) else f"; many have it at {url.rstrip('/')}/v1"
            raise BackEndUnusable(f"the endpoint {url} answered {status}: {HOPELESS[status]}{quoted}{version}")
        raise _Refused(f"the endpoint refused it with status {status}{quoted}")

    def _learn(self, form: RequestForm, refusal: str, calls: int) -> None:
        """Ask without what was refused from now on. Raises Unanswered if nothing can be left out."""
        if self._form != form:  # another question has learned it meanwhile
            return
        found = form.without(refusal)
        if found is None:
            raise Unanswered(refusal, calls)
        self._form = found
        _LOG.warning("%s; from now on it is asked with %s", refusal, found)

    def _reason(self, body: bytes | dict[str, Any]) -> str:
        return reason_in(body, os.environ.get(self._settings.key_variable or "", "").strip())

    def _reply(self, envelope: dict[str, Any], calls: int) -> Reply:
        """Return the answer in a response. Raises _Failed if there is none, _Refused, or Unanswered if the model refused."""
        try:
            choice = envelope["choices"][0]
            message = choice["message"]
            refusal, text = message.get("refusal"), message.get("content")
            ended = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._error_inside(envelope) from None
        if refusal or ended == "content_filter":
            raise Unanswered("the model refused to answer", calls)
        if ended == "length":
            tokens = self._settings.max_tokens
            raise Unanswered(f"the answer was cut off after annotation.back_end.max_tokens = {tokens}; allow more", calls)
        if isinstance(text, list):  # parts, of which some are text
            text = "".join(part.get("text") or "" for part in text if isinstance(part, dict))
        if not isinstance(text, str):
            raise _Failed("its message holds no text")
        usage = envelope.get("usage")
        counted = usage if isinstance(usage, dict) else {}
        return Reply(text, _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens")), calls)

    def _error_inside(self, envelope: dict[str, Any]) -> Exception:
        """Return what an error in a response of status 200 means."""
        reason = self._reason(envelope)
        if not reason:
            return _Failed("its response holds no message")
        if out_of_quota(reason, envelope):
            return BackEndUnusable(f"the endpoint {self._settings.url} says that the quota or the credit is used up: {reason}")
        error = envelope.get("error")
        if isinstance(error, dict) and str(error.get("code")) == "429":
            return _TooMuch(None, reason)
        if self._form.without(reason):
            return _Refused(f"the endpoint refused it: {reason}")
        return _Failed(f"it answered with an error: {reason}")

    async def _wait_as_told(self, told: _TooMuch, trouble: _Trouble, calls: int) -> None:
        """Hold all requests back as long as the endpoint said, or for a growing pause. Raises Unanswered."""
        trouble.pauses += 1
        # A service that says 0 would be asked thousands of times a second.
        if told.seconds is not None and told.seconds >= self._settings.backoff_seconds:
            pause = told.seconds
        else:
            pause = max(self._backoff(trouble.pauses), _LEAST_PAUSE)
        trouble.waited += pause
        if trouble.waited > self._settings.patience_seconds:
            reason = f": {told}" if str(told) else ""
            raise Unanswered(f"the endpoint had too much to do for {self._settings.patience_seconds:g} s{reason}", calls)
        self._open_at = max(self._open_at, time.monotonic() + pause)

    async def _until_open(self) -> None:
        """Wait for the end of a pause, each request a little longer, so that they do not all return at once."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left + self._random.uniform(0, min(left, self._settings.backoff_seconds)))

    def _backoff(self, number: int) -> float:
        """Return the longest pause in seconds after the given failure: twice as long each time."""
        return float(min(LONGEST_PAUSE, self._settings.backoff_seconds * 2 ** min(number - 1, 16)))


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
