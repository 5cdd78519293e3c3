"""The condition texts, what is dropped from them and in which order, and the draws of stage 1, by hand on the toy tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from cpo_ray.config import ConditionMixture
from cpo_ray.core.prompts import (
    PROMPT_END,
    ConditionTexts,
    Labels,
    TextLosses,
    condition_texts,
    in_hierarchy_order,
    stage_one_text,
    text_losses,
)
from cpo_ray.hierarchy import Hierarchy, HierarchyError, load_hierarchy

LABELS = Labels("red circle", ("color.palette", "edge.clarity", "light.modelling"), ("brush.surface", "brush.ground"))
ROOM = 100


def count_tokens(text: str) -> int:
    """Start and end, one token per word and per comma, as CLIP counts short words."""
    return 2 + len(text.replace(",", " , ").split())


@pytest.fixture(scope="module")
def toy() -> Hierarchy:
    return load_hierarchy(Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml")


def test_texts_hold_their_parts_in_hierarchy_order(toy: Hierarchy) -> None:
    texts, dropped = condition_texts(LABELS, toy, count_tokens, ROOM)
    assert texts == ConditionTexts(
        content="red circle",
        positive="red circle, clear edges, modelled light, vivid palette",
        negative="speckled ground, banded brush",
        all="red circle, clear edges, modelled light, vivid palette, speckled ground, banded brush",
        null="",
    )
    assert dropped == ()


def test_a_picture_without_attributes_has_its_prompt_alone(toy: Hierarchy) -> None:
    texts, _ = condition_texts(Labels("red circle", (), ()), toy, count_tokens, ROOM)
    assert astuple(texts) == ("red circle", "red circle", "", "red circle", "")


# The whole text has 2 + 2 + 5 * 3 = 19 tokens and each attribute costs 3.
@pytest.mark.parametrize(
    ("limit", "dropped", "whole"),
    [
        (19, "", "red circle, clear edges, modelled light, vivid palette, speckled ground, banded brush"),
        (18, "+color.palette", "red circle, clear edges, modelled light, speckled ground, banded brush"),
        (15, "+color.palette +light.modelling", "red circle, clear edges, speckled ground, banded brush"),
        (12, "+color.palette +light.modelling -brush.surface", "red circle, clear edges, speckled ground"),
        (9, "+color.palette +light.modelling -brush.surface +edge.clarity", "red circle, speckled ground"),
        (4, "+color.palette +light.modelling -brush.surface +edge.clarity -brush.ground", "red circle"),
    ],
)
def test_attributes_go_from_the_longer_side_and_from_all_texts(toy: Hierarchy, limit: int, dropped: str, whole: str) -> None:
    texts, gone = condition_texts(LABELS, toy, count_tokens, limit)
    assert gone == tuple(dropped.split())
    assert texts.all == whole
    assert texts.content == "red circle"
    # What is left of the whole text is the positive one and then the negative one, in every case.
    assert ", ".join(filter(None, [texts.positive, texts.negative])) == whole
    assert max(count_tokens(text) for text in astuple(texts)) <= limit


def test_a_prompt_that_is_too_long_by_itself_is_cut_at_a_word(toy: Hierarchy) -> None:
    labels = Labels("one two three four five six", ("edge.clarity",), ())
    texts, dropped = condition_texts(labels, toy, count_tokens, 6)
    assert astuple(texts) == ("one two three four", "one two three four", "", "one two three four", "")
    assert dropped == ("+edge.clarity", PROMPT_END)


def count_bytes(text: str) -> int:
    """Start and end, and one token per byte, as byte-level tokenizers count letters that they have seldom seen."""
    return 2 + len(text.encode())


@pytest.mark.parametrize(
    ("prompt", "limit", "kept"),
    [
        ("一只红色的狐狸坐在雪地里" * 8, 77, "一只红色的狐狸坐在雪地里" * 2 + "一"),
        ("港にか\u3099浮かぶ小さな船", 11, "港に"),  # か with its mark is two characters and one letter
        ("a fox, 一只红色的狐狸坐在雪地里", 20, "a fox, 一只红"),
        ("red " + "x" * 10 + " cat", 10, "red"),  # a word is left whole
        ("👩‍🎨" * 5, 30, "👩‍🎨" * 2),
        ("👩‍🎨" * 5, 4, "👩"),  # nothing fits, and nothing is emptied
    ],
)
def test_a_prompt_without_spaces_is_cut_between_its_letters_and_never_emptied(
    toy: Hierarchy, prompt: str, limit: int, kept: str
) -> None:
    texts, dropped = condition_texts(Labels(prompt, (), ()), toy, count_bytes, limit)
    assert (texts.content, dropped) == (kept, (PROMPT_END,))


def test_attributes_keep_their_share_of_a_long_prompt(toy: Hierarchy) -> None:
    prompt = " ".join(f"word{number}" for number in range(75))
    texts, dropped = condition_texts(replace(LABELS, prompt=prompt), toy, count_tokens, 77)
    # Five attributes take 15 tokens, less than a third of 77, so that the prompt alone is cut.
    assert dropped == (PROMPT_END,) and count_tokens(texts.all) == 77
    assert texts.content == " ".join(f"word{number}" for number in range(60))
    assert texts.positive.startswith(texts.content) and texts.negative == "speckled ground, banded brush"
    # Of 24 tokens a third are 8, which two attributes fill.
    texts, dropped = condition_texts(replace(LABELS, prompt=prompt), toy, count_tokens, 24)
    assert dropped == ("+color.palette", "+light.modelling", "-brush.surface", PROMPT_END)
    assert texts.all == f"{' '.join(f'word{number}' for number in range(16))}, clear edges, speckled ground"
    lost = text_losses([replace(LABELS, prompt=prompt), LABELS], toy, count_tokens, 24)
    assert lost == TextLosses(texts=2, cut=1, tokens=75 - 16, pictures=1, attributes=3)


def test_unknown_attributes_and_missing_poles_are_refused(toy: Hierarchy) -> None:
    with pytest.raises(HierarchyError, match=r"did you mean 'edge\.clarity'"):
        condition_texts(Labels("red circle", ("edge.clarty",), ()), toy, count_tokens, ROOM)
    with pytest.raises(HierarchyError, match="one-sided"):
        condition_texts(Labels("red circle", (), ("composition.thirds",)), toy, count_tokens, ROOM)


def test_hierarchy_order_is_that_of_the_file(toy: Hierarchy) -> None:
    assert in_hierarchy_order(sorted(toy.attributes), toy) == tuple(toy.attributes) != tuple(sorted(toy.attributes))


def draws(toy: Hierarchy, mixture: ConditionMixture, count: int, seed: int = 0, labels: Labels = LABELS) -> list[str]:
    generator = np.random.default_rng(seed)
    return [stage_one_text(labels, toy, mixture, generator, count_tokens, ROOM) for _ in range(count)]


def test_forms_are_drawn_by_their_normalised_shares(toy: Hierarchy) -> None:
    mixture = ConditionMixture(null=1, negative=2, content=1, content_positive=2, all=4, attribute_dropout=0)
    counts = Counter(draws(toy, mixture, 2000))
    texts, _ = condition_texts(LABELS, toy, count_tokens, ROOM)
    expected = {texts.null: 200, texts.negative: 400, texts.content: 200, texts.positive: 400, texts.all: 800}
    assert counts.keys() == expected.keys()
    # Four standard deviations of a binomial count are 4 * sqrt(2000 * p * (1 - p)).
    assert all(abs(counts[text] - count) < 4 * np.sqrt(count * (1 - count / 2000)) for text, count in expected.items())


def test_each_attribute_is_left_out_with_the_given_chance(toy: Hierarchy) -> None:
    mixture = ConditionMixture(null=0, negative=0, content=0, content_positive=0, all=1, attribute_dropout=0.35)
    texts = draws(toy, mixture, 1000)
    for phrase in ("clear edges", "modelled light", "vivid palette", "speckled ground", "banded brush"):
        assert abs(sum(phrase in text for text in texts) - 650) < 4 * np.sqrt(1000 * 0.35 * 0.65)
    # Independently: all five stay in 0.65^5 = 11.6 % of the texts.
    assert abs(sum(text.count(",") == 5 for text in texts) - 116) < 4 * np.sqrt(1000 * 0.116 * 0.884)


def test_the_draw_is_a_function_of_the_generator(toy: Hierarchy) -> None:
    assert draws(toy, ConditionMixture(), 50, seed=3) == draws(toy, ConditionMixture(), 50, seed=3)
    assert draws(toy, ConditionMixture(), 50, seed=3) != draws(toy, ConditionMixture(), 50, seed=4)


def test_negatives_of_a_faultless_picture_are_the_null_condition(toy: Hierarchy) -> None:
    mixture = ConditionMixture(null=0, negative=1, content=0, content_positive=0, all=0)
    assert draws(toy, mixture, 3, labels=Labels("red circle", ("edge.clarity",), ())) == ["", "", ""]


def test_a_mixture_of_nothing_is_refused(toy: Hierarchy) -> None:
    with pytest.raises(ValueError, match="all shares of the condition mixture are 0"):
        draws(toy, ConditionMixture(null=0, negative=0, content=0, content_positive=0, all=0), 1)
