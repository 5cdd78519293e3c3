"""What is said to and by an OpenAI-compatible endpoint, in the forms that services have for it. Nothing here sends anything."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.pictures import Picture

if TYPE_CHECKING:
    from cpo_ray.annotation.back_ends.endpoint_settings import EndpointSettings

#: Codes of errors that no waiting cures.
_QUOTA = re.compile(r"insufficient[_ ](?:quota|balance|credits?|funds)|exceeded_current_quota|billing_hard_limit|out of credits?")
_REFUSED = re.compile(
    r"unsupported|not (?:supported|permitted|allowed|recognized|available)|n't support|not support|unrecognized|unknown"
    r"|unexpected|deprecated|extra (?:inputs|fields)|instead|only the default"
)


@dataclass(frozen=True)
class RequestForm:
    """How an endpoint takes a question, found out once: what it refuses is left out, or said in another way."""

    length: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    answer: Literal["json_schema", "json_object", "text"] = "json_schema"

    def without(self, refusal: str) -> RequestForm | None:
        """Return the form without what an error says is refused; None if it speaks of nothing that can be left out."""
        said = refusal.lower()
        if not _REFUSED.search(said):
            return None
        if "max_tokens" in said and self.length == "max_tokens":
            return replace(self, length="max_completion_tokens")
        if "temperature" in said and self.temperature:
            return replace(self, temperature=False)
        if any(word in said for word in ("response_format", "json_schema", "json_object", "guided", "structured output")):
            weaker: dict[str, Literal["json_object", "text"]] = {"json_schema": "json_object", "json_object": "text"}
            return replace(self, answer=weaker[self.answer]) if self.answer in weaker else None
        return None

    def __str__(self) -> str:
        return f"{self.length}, {'' if self.temperature else 'no '}temperature, answers as {self.answer}"


def request_body(settings: EndpointSettings, picture: Picture, question: Question, complaint: str, form: RequestForm) -> bytes:
    """Return the JSON of one request to `/chat/completions`."""
    seen = base64.b64encode(picture.seen).decode()
    said = f"{question.user} Your last answer could not be used: {complaint}. Answer again." if complaint else question.user
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{seen}"}},
        {"type": "text", "text": said},
    ]
    system, answer = question.system, {}
    if form.answer == "json_schema":
        schema = {"name": "answer", "strict": True, "schema": question.schema}
        answer = {"response_format": {"type": "json_schema", "json_schema": schema}}
    else:  # what the service does not enforce is asked for
        system = f"{system} Answer with one JSON object of this JSON schema and nothing else: {json.dumps(question.schema)}"
        answer = {"response_format": {"type": "json_object"}} if form.answer == "json_object" else {}
    body = {
        "model": settings.model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        **answer,
        **({"temperature": settings.temperature} if form.temperature else {}),
        form.length: settings.max_tokens,
    }
    return json.dumps(body).encode()


def reason_in(body: bytes | Mapping[str, Any], key: str = "") -> str:
    """Return what an error says, in whatever form it comes: short, on one line, without a key that it may repeat; or ""."""
    found: Any = body
    if isinstance(body, bytes):
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            text = body[:4096].decode(errors="replace")
            title = re.search(r"<title>([^<]*)", text, re.IGNORECASE)
            found = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    said = _text_of(found)
    said = " ".join((said.replace(key, "…") if key else said).split())
    return "".join(character for character in said if character.isprintable())[:300]


def out_of_quota(reason: str, body: bytes | Mapping[str, Any]) -> bool:
    """Return whether an error means that nobody will be answered any more, and not that there is too much to do."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else json.dumps(body)
    codes = re.findall(r'"(?:code|type|status)"\s*:\s*"([^"]{1,100})"', text)
    return any(_QUOTA.search(said.lower()) for said in (*codes, reason))


def seconds_in(retry_after: str | None) -> float | None:
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


def _text_of(found: Any, depth: int = 0) -> str:
    """Return the words in an error: a text, or the first one under the names that services give it."""
    if isinstance(found, str):
        return found
    if depth > 5:
        return ""
    if isinstance(found, list):
        return next((text for entry in found if (text := _text_of(entry, depth + 1))), "")
    if isinstance(found, Mapping):
        names = ("error", "errors", "message", "detail", "details", "msg", "reason", "title", "code", "type")
        return next((text for name in names if (text := _text_of(found.get(name), depth + 1))), "")
    return ""
