"""The settings of an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.config.annotation import BackEndSettings
from cpo_ray.config.review import is_loopback
from cpo_ray.config.section import Free

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*\Z")


class EndpointSettings(BackEndSettings):
    """An OpenAI-compatible service, such as vLLM with a vision model."""

    url: Free[str]
    """Address up to the version, such as http://127.0.0.1:8000/v1."""
    key_variable: Free[str | None] = None
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
    proxy: Free[bool] = False
    """Go through the proxy that HTTPS_PROXY or HTTP_PROXY names where the actors run, except to hosts in NO_PROXY."""
    temperature: float = Field(default=0.0, ge=0)
    """Left out where the endpoint refuses it."""
    max_tokens: PositiveInt = 1024
    """Longest answer in tokens, with what a model thinks first; sent as max_completion_tokens where the endpoint wants it so."""
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
        if self.key_variable and not _VARIABLE.match(self.key_variable):
            # A key that was written here must not be shown.
            raise ValueError("key_variable is the name of an environment variable in capitals, such as OPENAI_API_KEY, not a key")
        if (ending := re.search(r"/(chat/)?completions/?$|/(models|responses)/?$", parts.path)) is not None:
            raise ValueError(f"url goes up to the version, such as http://127.0.0.1:8000/v1; leave {ending[0]} off")
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
