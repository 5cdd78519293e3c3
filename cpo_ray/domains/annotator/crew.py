"""Those who ask about drawn pictures: an agent in this process, or one in each of several Ray actors where each takes a GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import finalize

import ray
from ray.exceptions import RayError, RayTaskError

from cpo_ray.annotation.asking.agent import Agent
from cpo_ray.annotation.asking.annotator import Effort, Outcome, Shown
from cpo_ray.annotation.back_ends.base import BackEndUnusable
from cpo_ray.annotation.pictures import Picture, drawn
from cpo_ray.annotation.report import in_short
from cpo_ray.annotation.run import BLOCK, BLOCKS_PER_ACTOR, AnnotationError
from cpo_ray.config.annotation import AgentSettings
from cpo_ray.core.files import DiskFullError
from cpo_ray.core.progress import ProgressLine
from cpo_ray.evaluation.domain import Picture as Pixels
from cpo_ray.hierarchy import Hierarchy

Found = TypeVar("Found", Outcome, Shown)
Asked = Callable[[Sequence[Picture]], list[Found]]

logger = logging.getLogger(__name__)


class Crew:
    """Asks about lists of pictures, several blocks at the same time.

    An agent that takes no GPU waits most of the time and works in this process, `back_end.in_flight` questions at once. Where one
    takes a GPU there are `actors` Ray actors, which end when nothing uses the crew any more. What failed in an earlier run is
    asked again.
    """

    def __init__(self, settings: AgentSettings, tree: Hierarchy) -> None:
        self._settings = settings
        self._actors: list[Any] = []
        if not settings.gpus_per_actor:
            self._agent = Agent(settings, tree, write_prompts=False, retry_failed=True)
            return
        remote = ray.remote(Agent).options(
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor,
            max_restarts=2,
            max_task_retries=1,
            max_concurrency=BLOCKS_PER_ACTOR,
        )
        self._actors = [remote.remote(settings, tree, write_prompts=False, retry_failed=True) for _ in range(settings.actors)]
        finalize(self, _end, self._actors)

    def annotate(self, pictures: Sequence[Pixels], prompts: Sequence[str]) -> list[Outcome]:
        """Return the outcome of each picture. Raises AnnotationError if the agent cannot be asked, or answers nothing."""
        there = self._actors
        asked: list[Asked[Outcome]] = [_of_actor(one.annotate) for one in there] if there else [self._agent.annotate]
        return self._all(asked, pictures, prompts, "attributes read")

    def shows(self, pictures: Sequence[Pixels], prompts: Sequence[str]) -> list[Shown]:
        """Return what each picture lacks of its prompt. Raises as `annotate` does."""
        there = self._actors
        asked: list[Asked[Shown]] = [_of_actor(one.shows) for one in there] if there else [self._agent.shows]
        return self._all(asked, pictures, prompts, "contents judged")

    def _all(self, asked: Sequence[Asked[Found]], pictures: Sequence[Pixels], prompts: Sequence[str], what: str) -> list[Found]:
        """Ask about every picture, and tell how far it is and what could not be answered."""
        started, effort, found = time.monotonic(), Effort(), list[Found]()
        line = ProgressLine("annotator")
        tell = line.counter(what, len(asked) * BLOCKS_PER_ACTOR * BLOCK)
        in_vain, problems = 0, list[str]()
        for one in self._answers(asked, pictures, prompts):
            found.append(one)
            effort.add(one.effort)
            in_vain = in_vain + 1 if one.problem else 0
            problems += [one.problem] if one.problem else []
            if in_vain >= min(self._settings.stop_after, len(pictures)):
                raise AnnotationError(
                    f"the last {in_vain} drawn pictures could not be read, lastly: {one.problem}; when the back end is well "
                    "again, start the same command again; every answer so far is kept"
                )
            rate, tokens = effort.asked / (time.monotonic() - started), effort.tokens_in + effort.tokens_out
            line.note = f"{rate:.1f} questions/s, {effort.known} known before, {in_short(tokens)} tokens"
            tell(len(found), len(pictures))
        if problems:
            logger.warning("%d of %d pictures could not be read, lastly: %s", len(problems), len(pictures), problems[-1])
        return found

    def _answers(self, asked: Sequence[Asked[Found]], pictures: Sequence[Pixels], prompts: Sequence[str]) -> Iterator[Found]:
        """Yield what is found of each picture, in order. A block is encoded when its turn has come."""
        side, kind = self._settings.side, self._settings.format

        def block(start: int) -> list[Found]:
            places = range(start, min(start + BLOCK, len(pictures)))
            prepared = [drawn(str(place), prompts[place], pictures[place], side, kind) for place in places]
            return asked[start // BLOCK % len(asked)](prepared)

        threads = ThreadPoolExecutor(len(asked) * BLOCKS_PER_ACTOR, thread_name_prefix="annotator")
        try:
            for answers in threads.map(block, range(0, len(pictures), BLOCK)):
                yield from answers
        except (BackEndUnusable, DiskFullError, OSError) as error:
            raise AnnotationError(str(error)) from error
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            if not self._actors:
                self._agent.give_up()  # or a stopped run would wait at its end for what is still under way


def _of_actor(method: Any) -> Callable[[Sequence[Picture]], list[Any]]:
    """A method of an actor as a plain function. Raises what it raised, and AnnotationError if the actor is lost."""

    def ask(pictures: Sequence[Picture]) -> list[Any]:
        try:
            found: list[Any] = ray.get(method.remote(pictures))
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise AnnotationError(f"an actor of the annotator failed: {error}") from error
        return found

    return ask


def _end(actors: Sequence[Any]) -> None:
    """Give the GPUs back."""
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
