"""The configuration of `jobs/annotate.py`. No torch, no Ray."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.config.section import Section


class PictureSource(Section):
    """The pictures to annotate."""

    path: Path
    """A folder, searched with everything below it, or one file. It may hold pictures, Parquet files and WebDataset tars, alone or
    mixed."""
    toy_pictures: int = Field(default=0, ge=0)
    """With a positive number the embedded domain draws that many pictures into `path` when there is nothing."""
    image_column: str = "image"
    """Column of Parquet files with the encoded images, as bytes or as a struct with a field `bytes`."""
    id_column: str = "id"
    """Column of Parquet files with the ids. Without such a column, file and row number are the id."""
    prompt_column: str = "prompt"
    """Column of Parquet files with the content prompt y. It may be missing if the back end writes prompts."""


class AnnotationSettings(Section):
    """How pictures are annotated, and where the results go."""

    hierarchy: Path
    """YAML file of the attribute tree. The back end is asked about one root at a time."""
    back_end: Literal["endpoint", "local", "measuring"]
    """An OpenAI-compatible endpoint, a vision-language model on our own actors, or the embedded domain's measuring agent."""
    answers: Path
    """Folder of all answers. Runs may share it; a question that has an answer there is not asked again."""
    output: Path
    """Folder of the annotated shards. Every run replaces it as a whole when it ends."""
    write_prompts: bool = False
    """Ask for the content prompt y of a picture that has none. Otherwise such a picture is set aside."""
    side: PositiveInt = 1024
    """Longest side in pixels of the picture that the back end sees."""
    format: Literal["jpeg", "png"] = "jpeg"
    """Encoding of that picture."""
    tries: PositiveInt = 3
    """How often a question is asked before its picture is set aside. After a broken or contradictory answer the back end is told
    why."""
    actors: PositiveInt = 1
    cpus_per_actor: PositiveFloat = 0.5
    gpus_per_actor: float = Field(default=0.0, ge=0)
    stop_after: PositiveInt = 20
    """The run stops after this many pictures in a row without a single answer, since then the back end is at fault."""


class Endpoint(Section):
    """An OpenAI-compatible service, such as vLLM with a vision model."""

    url: str
    """Address up to the version, such as http://127.0.0.1:8000/v1."""
    model: str
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the key, on the actors' machines, too. The key itself is never written anywhere."""
    in_flight: PositiveInt = 32
    """Requests at the same time, per actor."""
    timeout_seconds: PositiveFloat = 120.0
    """Time limit of one request."""
    attempts: PositiveInt = 5
    """Requests per question that may fail with errors and time-outs. A request to wait does not count."""
    backoff_seconds: PositiveFloat = 1.0
    """The first pause after a failure. Each further pause may be twice as long, and is partly random."""
    patience_seconds: PositiveFloat = 900.0
    """How long one question may wait in total for an endpoint that reports overload."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = 1024
    """Longest answer in tokens."""
    price_in: float = Field(default=0.0, ge=0)
    """Price of a million tokens of questions and pictures, for the displayed cost."""
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers, for the displayed cost."""

    @model_validator(mode="after")
    def _safe_url(self) -> Endpoint:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with http:// or https:// and name a host, such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query:
            raise ValueError("url must hold no user, password or query, since it is shown; keys belong into key_variable")
        if self.key_variable and parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("a key does not travel over http to another machine; write https, or leave key_variable out")
        return self


class Local(Section):
    """A vision-language model that runs on the actors themselves."""

    model: str
    """Hub id, or a folder saved by transformers."""
    revision: str | None = None
    """Git revision of a hub id. Pin it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch: PositiveInt = 8
    """Questions per forward."""
    max_tokens: PositiveInt = 512
    """Longest answer in tokens."""


class AnnotationConfig(Section):
    """Everything that one annotation needs, complete in one file."""

    pictures: PictureSource
    annotation: AnnotationSettings
    endpoint: Endpoint | None = None
    local: Local | None = None

    @model_validator(mode="after")
    def _the_back_end_has_its_section(self) -> AnnotationConfig:
        needed = self.annotation.back_end
        if needed != "measuring" and getattr(self, needed) is None:
            raise ValueError(f"annotation.back_end is {needed!r}, which needs a section [{needed}] with at least its model")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """All beside the question and the picture's file that an answer depends on: answers are kept by it."""
        seen = {"side": self.annotation.side, "format": self.annotation.format}
        if self.annotation.back_end == "measuring":
            return {"back_end": "measuring", "model": "toy", **seen}
        if self.annotation.back_end == "local":
            assert self.local is not None
            settings = self.local
            return {"back_end": "local", "model": settings.model, "revision": settings.revision, "dtype": settings.dtype, **seen}
        assert self.endpoint is not None
        # Not the url: the same model served elsewhere, or on another port after a restart, gives the same answers.
        return {"back_end": "endpoint", "model": self.endpoint.model, "temperature": self.endpoint.temperature, **seen}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
