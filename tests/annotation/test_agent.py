"""The agent that whole lists of pictures are given to, and its question about content."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.annotating import annotate, prepared, settings
from support.annotation_server import Server

from cpo_ray.annotation.asking.agent import Agent
from cpo_ray.annotation.asking.answers import AnswerError, missing
from cpo_ray.annotation.back_ends.base import BackEndUnusable
from cpo_ray.annotation.pictures import Picture, drawn
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.domains.toy.dataset import draw_pictures
from cpo_ray.domains.toy.render import CONTENTS, Scene, render
from cpo_ray.hierarchy import load_hierarchy


def agent(config: AnnotationConfig, **told: Any) -> Agent:
    tree = load_hierarchy(config.annotation.hierarchy)
    return Agent(config.annotation, tree, **{"write_prompts": False, "retry_failed": False, **told})


def test_it_answers_as_the_annotation_does_and_asks_once_however_many_threads_ask(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 4, seed=3)
    with Server() as server:
        config = settings(tmp_path, server.url)
        pictures, asking = prepared(config), agent(config)
        with ThreadPoolExecutor(4) as threads:
            several = list(threads.map(asking.annotate, [pictures] * 4))
        assert server.total == sum(outcome.effort.asked for outcomes in several for outcome in outcomes) == len(server.calls)
        direct = annotate(config)
    assert [[o.positive_ids for o in outcomes] for outcomes in several] == [[o.positive_ids for o in direct.values()]] * 4


def test_nothing_is_left_open_when_nobody_uses_it_any_more(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 1, seed=3)
    before = threading.active_count()
    asking = agent(settings(tmp_path))
    asking.annotate(prepared(settings(tmp_path)))
    thread = next(one for one in threading.enumerate() if one.name == "agent")
    del asking
    gc.collect()
    thread.join(5)
    assert threading.active_count() == before


def test_a_back_end_that_cannot_be_opened_says_so_to_everybody(tmp_path: Path) -> None:
    asking = agent(settings(tmp_path, "http://127.0.0.1:9/v1", key_variable="NO_SUCH_KEY"))
    for _ in range(2):
        with pytest.raises(BackEndUnusable, match="NO_SUCH_KEY, which is not set"):
            asking.annotate([picture_of(0)])


def picture_of(number: int, prompt: str = "") -> Picture:
    """A faultless picture of the embedded domain, asked for by its own prompt or another."""
    content = CONTENTS[number]
    return drawn(str(number), prompt or content.prompt, render(Scene(content, frozenset(), False, 1)), 64, "png")


def test_content_is_a_question_of_the_same_agent(tmp_path: Path) -> None:
    other = next(content.prompt for content in CONTENTS if content.shape != CONTENTS[0].shape)
    with Server() as server:
        asking = agent(settings(tmp_path, server.url))
        found = asking.shows([picture_of(0), picture_of(0, other), picture_of(1)])
        assert [bool(shown.missing) for shown in found] == [False, True, False] and "shape" in found[1].missing
        server.script = lambda said, asked, call: "500"
        again = asking.shows([picture_of(0), picture_of(2)])
        assert again[0].effort.known == 1 and not again[0].missing
        assert again[1].problem.startswith("the endpoint failed")


def test_what_an_answer_about_content_may_be() -> None:
    assert missing('{"named": ["a house", "a lake"], "missing": ["a lake"]}') == ("a lake",)
    for text in ('{"named": ["a"]}', '{"named": [1], "missing": []}', '{"named": [], "missing": []}', "[]"):
        with pytest.raises(AnswerError):
            missing(text)


def test_a_drawn_picture_is_known_by_its_pixels_and_shape() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    digest = drawn("a", "", pixels, 64, "png").digest
    assert drawn("b", "other", pixels.copy(), 32, "jpeg").digest == digest
    assert drawn("a", "", pixels.reshape(32, 16, 3), 64, "png").digest != digest
    small = drawn("a", "", pixels, 16, "jpeg")
    assert (small.size, small.seen_size, small.media_type) == ((32, 16), (16, 8), "image/jpeg")
