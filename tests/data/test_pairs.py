from __future__ import annotations

import pytest

from cpo_ray.core.prompts import Labels
from cpo_ray.data.pairs import annotated_pairs, better


def labels(prompt: str, good: int, bad: int) -> Labels:
    return Labels(prompt, tuple(f"good.{n}" for n in range(good)), tuple(f"bad.{n}" for n in range(bad)))


@pytest.mark.parametrize(
    ("one", "other", "wins"),
    [((3, 1), (3, 2), True), ((4, 1), (3, 1), True), ((3, 1), (3, 1), False), ((4, 2), (3, 1), False), ((2, 0), (3, 1), False)],
)
def test_better_means_better_in_one_count_and_worse_in_none(one: tuple[int, int], other: tuple[int, int], wins: bool) -> None:
    assert better(labels("y", *one), labels("y", *other)) is wins
    assert not (wins and better(labels("y", *other), labels("y", *one)))


def test_each_picture_that_is_better_than_some_of_its_prompt_wins_one_pair() -> None:
    described = {
        "best": labels("a", 5, 0), "middle": labels("a", 4, 1), "worst": labels("a", 3, 2),
        "aside": labels("a", 9, 9), "other": labels("b", 0, 9),
    }  # fmt: skip
    pairs = [annotated_pairs(described, described.__getitem__, seed) for seed in range(20)]
    for found in pairs:
        assert set(found) == {"best", "middle"} and found["middle"] == "worst"
    assert {found["best"] for found in pairs} == {"middle", "worst"}
    assert annotated_pairs(reversed(described), described.__getitem__, 3) == pairs[3], "the order of names changes nothing"
    assert annotated_pairs(["aside", "other"], described.__getitem__, 0) == {}
