"""Questions per second of the annotation client, and how much of the time is ours and not the endpoint's.

    python benchmarks/annotate.py [--pictures 65] [--output FILE]

A server in a process of its own answers every question at once, or after 500 ms, with the same few bytes; the client sends
pictures of 1024 x 768 pixels with the questions of `hierarchy/painting.yaml` (seven for each) and keeps what comes.  No Ray: the
client is what every actor runs.  With n requests in flight and a latency of l the endpoint allows n / l questions a second;
what is missing to that is ours.

Prediction, written before the first run: a question is 20 kB of text and 200 kB of picture in base64, which is encoded, put into
JSON, sent, and answered with 300 bytes that are read, checked and written: 3 ms of one core, half of it for bytes that are
copied.  So 300 questions a second at no latency, all of that time ours.  At 500 ms and 32 in flight the endpoint allows 64 a
second and the client needs a fifth of its core for that: 95 % of 64 are reached, so 5 % of the time is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image, ImageFilter

from cpo_ray.annotation.asking.annotator import Annotator
from cpo_ray.annotation.asking.cache import Answers
from cpo_ray.annotation.back_ends.base import open_back_end
from cpo_ray.annotation.pictures import Picture, prepare
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.hierarchy import load_hierarchy

TREE = Path(__file__).parents[1] / "hierarchy" / "painting.yaml"
ANSWER = {"description": "A description of two sentences. " * 4, "sub_dimensions": [], "positive_ids": [], "negative_ids": []}
IN_FLIGHT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=65)  # one to begin with, and 14 full rounds of 32 questions
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pictures = [_picture(number) for number in range(options.pictures)]
    result: dict[str, dict[str, float]] = {}
    for latency in (0.0, 0.5):
        measured = asyncio.run(_measure(pictures, latency))
        allowed = IN_FLIGHT / latency if latency else float("inf")
        result[f"latency {latency:g} s"] = {
            "questions per second": measured.questions / measured.wall,
            "client CPU milliseconds per question": 1e3 * measured.cpu / measured.questions,
            "share of time that is ours": 1 - measured.questions / allowed / measured.wall,
        }
    text = json.dumps({"kilobytes per picture": sum(len(p.seen) for p in pictures) / len(pictures) / 1e3, **result}, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


@dataclass(frozen=True)
class _Measured:
    questions: int
    wall: float
    cpu: float


async def _measure(pictures: list[Picture], latency: float) -> _Measured:
    """Ask all questions about all pictures once."""
    context = multiprocessing.get_context("spawn")
    ports: Queue[int] = context.Queue()
    server = context.Process(target=_serve, args=(latency, ports), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as temporary:
        config = _config(Path(temporary), ports.get(timeout=60))
        back_end = open_back_end(config.annotation.back_end, "cpu")
        with Answers(config.annotation.answers, config.annotation.identity) as answers:
            annotator = Annotator(load_hierarchy(TREE), back_end, answers, tries=1, write_prompts=False)
            await annotator.annotate(pictures[0])  # connections, caches
            started, cpu = time.monotonic(), time.process_time()
            outcomes = await asyncio.gather(*(annotator.annotate(picture) for picture in pictures[1:]))
            wall, cpu = time.monotonic() - started, time.process_time() - cpu
        await back_end.close()
    server.terminate()
    assert not any(outcome.problem for outcome in outcomes)
    return _Measured(sum(outcome.effort.asked for outcome in outcomes), wall, cpu)


def _config(folder: Path, port: int) -> AnnotationConfig:
    endpoint = {"kind": "endpoint", "url": f"http://127.0.0.1:{port}/v1", "model": "canned", "in_flight": IN_FLIGHT}
    annotation = {"hierarchy": TREE, "back_end": endpoint, "answers": folder / "answers", "output": folder / "output"}
    return AnnotationConfig.model_validate({"pictures": {"path": folder}, "annotation": annotation})


def _picture(seed: int) -> Picture:
    """Coarse and fine structure, so that it has about the bytes of a photographed painting."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (1024, 768), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(generator.integers(0, 256, (768, 1024, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    stream = io.BytesIO()
    Image.blend(coarse, fine, 0.4).save(stream, "png", compress_level=1)
    return prepare(str(seed), "a harbour at dawn", stream.getvalue(), 1024, "jpeg")


def _serve(latency: float, ports: Queue[int]) -> None:
    asyncio.run(_answer_for_ever(latency, ports))


async def _answer_for_ever(latency: float, ports: Queue[int]) -> None:
    message = {"message": {"role": "assistant", "content": json.dumps(ANSWER)}, "finish_reason": "stop"}
    body = json.dumps({"choices": [message], "usage": {"prompt_tokens": 6000, "completion_tokens": 40}})

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency)
        return web.Response(text=body)

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ports.put(runner.addresses[0][1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
