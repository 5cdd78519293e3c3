"""What asks the questions: one Protocol, behind it an endpoint, a local model or the embedded domain's measuring agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import AnnotationConfig


class Unanswered(RuntimeError):
    """One question has no answer; this concerns its picture alone. `calls` calls were made in vain."""

    def __init__(self, sentence: str, calls: int) -> None:
        super().__init__(sentence)
        self.calls = calls


class BackEndUnusable(RuntimeError):
    """No question can be answered, for example with a wrong key. The run stops with this sentence."""


@dataclass(frozen=True)
class Reply:
    """The text of an answer, its tokens, and the number of calls, failed ones included."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 1


class BackEnd(Protocol):
    """Answers questions about pictures. Any number of them may be asked at the same time; it bounds its own work."""

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Return one answer, unparsed. `complaint` says what was wrong with the last one, and is empty the first time.

        Raises Unanswered or BackEndUnusable.
        """

    async def close(self) -> None:
        """Release connections and models."""


def open_back_end(config: AnnotationConfig) -> BackEnd:
    """The configured back end; only its own libraries are imported. Raises BackEndUnusable."""
    if config.annotation.back_end == "endpoint":
        from cpo_ray.annotation.back_ends.endpoint import EndpointBackEnd

        assert config.endpoint is not None
        return EndpointBackEnd(config.endpoint)
    if config.annotation.back_end == "local":
        from cpo_ray.annotation.back_ends.local import LocalBackEnd

        assert config.local is not None
        return LocalBackEnd(config.local, "cuda" if config.annotation.gpus_per_actor else "cpu")
    from cpo_ray.domains.toy.measuring import MeasuringBackEnd

    return MeasuringBackEnd()
