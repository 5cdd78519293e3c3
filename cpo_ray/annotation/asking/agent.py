"""An agent for callers who wait for whole lists: the annotator, its back end and its answers, in an event loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from weakref import finalize

from cpo_ray.annotation.asking.annotator import Annotator, Outcome, Shown
from cpo_ray.annotation.asking.cache import Answers
from cpo_ray.annotation.back_ends.base import BackEnd, open_back_end
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import AgentSettings
from cpo_ray.hierarchy import Hierarchy

Result = TypeVar("Result")


class Agent:
    """Asks one back end about pictures under one tree, and keeps its answers. Any number of threads may use it at the same time.

    Back end and answers are opened at the first question, and closed when nothing uses the agent any more. A key is read where it
    is used and travels nowhere. An agent for a dry run opens no back end, and can only say what it would ask.
    """

    def __init__(
        self, settings: AgentSettings, tree: Hierarchy, *, write_prompts: bool, retry_failed: bool, dry_run: bool = False
    ) -> None:
        self._settings, self._dry_run = settings, dry_run
        self._make = partial(Annotator, tree, tries=settings.tries, write_prompts=write_prompts, retry_failed=retry_failed)
        self._opened: asyncio.Task[Annotator] | None = None
        self._to_close: list[BackEnd | Answers] = []
        self._pending: set[Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="agent", daemon=True).start()
        finalize(self, _close, self._loop, self._to_close)

    def annotate(self, pictures: Sequence[Picture]) -> list[Outcome]:
        """Return the outcome of each picture. Raises BackEndUnusable, and DiskFullError if an answer cannot be kept."""
        return self._wait(self._annotate(pictures))

    def shows(self, pictures: Sequence[Picture]) -> list[Shown]:
        """Return what each picture lacks of its prompt. Raises as `annotate` does."""
        return self._wait(self._shows(pictures))

    def expect(self, pictures: Sequence[Picture]) -> list[Outcome]:
        """Return what `annotate` would ask, without asking."""
        return self._wait(self._expect(pictures))

    def give_up(self) -> None:
        """Cancel all that is under way; whoever waits for it gets a CancelledError. Answers that have arrived are kept."""
        for waited in tuple(self._pending):
            waited.cancel()

    async def _annotate(self, pictures: Sequence[Picture]) -> list[Outcome]:
        annotator = await self._annotator()
        return list(await asyncio.gather(*(annotator.annotate(picture) for picture in pictures)))

    async def _shows(self, pictures: Sequence[Picture]) -> list[Shown]:
        annotator = await self._annotator()
        return list(await asyncio.gather(*(annotator.shows(picture) for picture in pictures)))

    async def _expect(self, pictures: Sequence[Picture]) -> list[Outcome]:
        annotator = await self._annotator()
        return [annotator.expect(picture) for picture in pictures]

    async def _annotator(self) -> Annotator:
        """The annotator, which all callers share; whatever keeps it from being opened is raised for each of them."""
        if self._opened is None:
            self._opened = asyncio.create_task(self._open())
        return await asyncio.shield(self._opened)

    async def _open(self) -> Annotator:
        settings = self._settings
        answers = Answers(settings.answers, settings.identity)
        self._to_close.append(answers)
        if self._dry_run:
            return self._make(None, answers)
        back_end = open_back_end(settings.back_end, "cuda" if settings.gpus_per_actor else "cpu")
        self._to_close.append(back_end)
        return self._make(back_end, answers)

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        waited = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._pending.add(waited)
        try:
            return waited.result()
        finally:
            self._pending.discard(waited)


def _close(loop: asyncio.AbstractEventLoop, opened: list[BackEnd | Answers]) -> None:
    """Release everything, and end the loop and its thread. A function, since what is to be collected must not be held by it."""

    async def release() -> None:
        for one in opened:
            if isinstance(one, Answers):
                one.close()
            else:
                await one.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(release(), loop)
