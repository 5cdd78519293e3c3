"""A review served in a thread of the test, and the pictures that it is about."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq
from aiohttp import web

from cpo_ray.config.review import ReviewSettings
from cpo_ray.data.shards import AnnotatedDataset, write_shards
from cpo_ray.domains.toy.dataset import make_dataset
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.review.pile import open_pile
from cpo_ray.review.server import application

TREE = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"
TOKEN = "the-token"


def settings(folder: Path, pictures: int = 4) -> ReviewSettings:
    """A data set of the embedded domain in folder/data, judgements in folder/reviews."""
    make_dataset(folder / "data", pictures, 3, load_hierarchy(TREE))
    return ReviewSettings(annotations=folder / "data", hierarchy=TREE, judgements=folder / "reviews", port=0)


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> AnnotatedDataset:
    """The rows of a data set, changed, as another one."""
    write_shards([change(row) for row in pq.read_table(folder / "annotated-00000.parquet").to_pylist()], target)
    return AnnotatedDataset.open(target)


class Served:
    """A context manager; `port` is where the page is, and `url` what the terminal would show."""

    def __init__(self, review: ReviewSettings, reviewer: str = "ann", sample: int | None = None) -> None:
        self._review, self._reviewer, self._sample = review, reviewer, sample
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/#token={TOKEN}"

    def __enter__(self) -> Served:
        self.pile = open_pile(self._review, self._reviewer, self._sample)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self.pile.close()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(application(self.pile, "127.0.0.1", TOKEN))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
