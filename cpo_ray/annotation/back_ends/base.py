"""The door to a back end, which answers questions about pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import BackEndSettings
from cpo_ray.config.registry import BACK_ENDS


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


class BackEnd(ABC):
    """Answers questions about pictures. Any number of them may be asked at the same time; it bounds its own work.

    A back end of one's own is a subclass, chosen by `annotation.back_end.kind = "module:Class"`. It is made with the section that
    `settings` has read and the device, "cpu" or "cuda", inside the event loop that it answers in. It may raise BackEndUnusable.
    """

    settings: ClassVar[type[BackEndSettings]]
    """The class of its settings. It is imported wherever a configuration is read, so import what is heavy when it is made."""

    @abstractmethod
    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Return one answer, unparsed. `complaint` says what was wrong with the last one, and is empty the first time.

        Raises Unanswered or BackEndUnusable.
        """

    async def close(self) -> None:  # noqa: B027, since many have nothing to release
        """Release connections and models."""


def open_back_end(settings: BackEndSettings, device: str) -> BackEnd:
    """Return the chosen back end. Raises BackEndUnusable."""
    opened = BACK_ENDS.load(settings.kind)(settings, device)
    if not isinstance(opened, BackEnd):
        raise BackEndUnusable(f"annotation.back_end.kind is {settings.kind!r}, which is not a subclass of {__name__}.BackEnd")
    return opened
