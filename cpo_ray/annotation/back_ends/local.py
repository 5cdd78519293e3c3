"""A vision-language model on this actor as a back end. Questions that arrive together share a forward."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.back_ends.base import BackEnd, BackEndUnusable, Reply, Unanswered
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import BackEndSettings
from cpo_ray.config.section import Free, at_home

if TYPE_CHECKING:
    from cpo_ray.models.vision_language import Generated

Waiting = tuple[Picture, Question, str, "asyncio.Future[Generated]"]


class LocalSettings(BackEndSettings):
    """A vision-language model that runs on the actors themselves."""

    model: str
    """Hub id, or a folder saved by transformers."""
    revision: str | None = None
    """Git revision of a hub id. Pin it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch: Free[PositiveInt] = 8
    """Questions per forward."""
    max_tokens: PositiveInt = 512
    """Longest answer in tokens."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"back_end": self.kind, "model": self.model, "revision": self.revision, "dtype": self.dtype}

    def on_other_machines(self) -> LocalSettings:
        folder = at_home(Path(self.model))
        return self.model_copy(update={"model": str(folder.absolute())}) if folder.is_dir() else self


class LocalBackEnd(BackEnd):
    """Collects up to `batch` questions and answers them together. Create it inside an event loop."""

    settings = LocalSettings

    def __init__(self, settings: LocalSettings, device: str) -> None:
        """Load the model. Raises BackEndUnusable if it cannot be loaded."""
        # Whoever only reads a configuration needs no transformers.
        from cpo_ray.models.vision_language import VisionLanguageError, VisionLanguageModel

        self._settings = settings
        try:
            self._model = VisionLanguageModel(settings.model, settings.revision, settings.dtype, device)
        except VisionLanguageError as error:
            raise BackEndUnusable(str(error)) from None
        self._waiting: asyncio.Queue[Waiting] = asyncio.Queue()
        self._worker = asyncio.create_task(self._work())

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Return one answer. Raises Unanswered if the model fails at this picture even alone in its batch."""
        answered: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((picture, question, complaint, answered))
        found = await answered
        return Reply(found.text, found.tokens_in, found.tokens_out)

    async def close(self) -> None:
        """Stop working."""
        self._worker.cancel()

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._settings.batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._settle(batch)

    async def _settle(self, batch: list[Waiting]) -> None:
        """Give every waiting question its answer, or the reason why there is none."""
        try:
            # A thread of its own lets the next questions arrive meanwhile.
            found = await asyncio.to_thread(self._answer, batch)
        except Exception as error:  # a processor or a model can raise anything, and the waiting questions must get it
            if len(batch) > 1:
                for one in batch:
                    await self._settle([one])
                return
            ((*_, answered),) = batch
            answered.set_exception(Unanswered(f"the model failed with {type(error).__name__}: {error}", calls=1))
            return
        for (*_, answered), answer in zip(batch, found, strict=True):
            answered.set_result(answer)

    def _answer(self, batch: list[Waiting]) -> list[Generated]:
        texts = [
            f"{question.system}\n\n{question.user}{f' Your last answer could not be used: {complaint}.' if complaint else ''}"
            for _, question, complaint, _ in batch
        ]
        pictures = [picture.pixels() for picture, *_ in batch]
        schemas = [question.schema for _, question, *_ in batch]
        return self._model.generate(pictures, texts, schemas, self._settings.max_tokens)
