"""The ledger of trained items, and the watch over a training's numbers."""

from __future__ import annotations

import math
from pathlib import Path

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.plan import Plan
from cpo_ray.objectives.preference import PreferenceSettings
from cpo_ray.training.artifacts.ledger import LedgerEntry, check_ledger, drop_after, read_ledger, write_segment
from cpo_ray.training.health import SETTLED, WINNER_JUDGED_FROM, HealthWatch, difference, winner_warning

PLAN = Plan.of_epochs(["a", "b", "c", "d", "e"], seed=0, global_batch=4, draws=2, epochs=2)


def entries(first: int, last: int, rank: int, world_size: int = 2) -> list[LedgerEntry]:
    batches = ((step, batch) for step in range(first, last) for batch in PLAN.rank_microbatches(step, rank, world_size, 1))
    return [(step, item) for step, batch in batches for item in batch.planned]


def write(output: Path, first: int, last: int) -> None:
    for rank in range(2):
        write_segment(output, first, last, rank, entries(first, last, rank))


def test_the_segments_of_all_ranks_are_the_plan(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    write(tmp_path, 2, 3)
    read = read_ledger(tmp_path)
    assert len(read) == 10
    assert [step for step, _ in read] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert check_ledger(PLAN, read) is None


def test_a_resume_drops_what_lies_beyond_its_checkpoint_and_trains_it_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    write(tmp_path, 2, 3)
    drop_after(tmp_path, 2)
    assert [step for step, _ in read_ledger(tmp_path)] == [0] * 4 + [1] * 4
    write(tmp_path, 2, 3)
    assert check_ledger(PLAN, read_ledger(tmp_path)) is None
    drop_after(tmp_path, 0)
    assert read_ledger(tmp_path) == []


def test_the_number_of_ranks_may_change_at_a_resume(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    write(tmp_path, 1, 2)  # by two ranks, whose checkpoint never counted
    drop_after(tmp_path, 1)
    write_segment(tmp_path, 1, 2, 0, entries(1, 2, 0, world_size=1))
    for rank in range(3):
        write_segment(tmp_path, 2, 3, rank, entries(2, 3, rank, world_size=3))
    assert check_ledger(PLAN, read_ledger(tmp_path)) is None


def test_an_item_too_few_and_one_too_many_are_named(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    read = read_ledger(tmp_path)
    too_few = check_ledger(PLAN, read[1:])
    assert too_few is not None
    assert "of 10 planned items 1 were not trained and 0 were trained in excess" in too_few
    assert f"{read[0][1].sample_id!r} draw {read[0][1].draw} in step 0" in too_few
    too_many = check_ledger(PLAN, [*read, read[-1]])
    assert too_many is not None
    assert "0 were not trained and 1 were trained in excess" in too_many
    assert f"{read[-1][1].sample_id!r} draw {read[-1][1].draw} in step 2" in too_many


def test_the_right_items_in_the_wrong_step_are_not_the_plan() -> None:
    moved = [(1 if step == 0 else step, item) for step, item in entries(0, 3, 0, 1)]
    assert check_ledger(PLAN, moved) is not None


def test_a_half_written_segment_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    (tmp_path / "ledger" / ".step-0-3-rank2.jsonl.partial").write_text('{"step": 0, "sam')
    assert check_ledger(PLAN, read_ledger(tmp_path)) is None


def test_a_number_that_is_not_finite_is_a_problem_at_any_step() -> None:
    watch = HealthWatch(spike_factor=20, gradient_clip=0)
    assert watch.problem(0, 0.7, 2.0) is None
    assert watch.problem(1, math.nan, 2.0) == "the loss of step 1 is nan (median of the gradient norm so far: 2)"
    assert watch.problem(1, 0.7, math.inf) == "the gradient norm of step 1 is inf (median of the gradient norm so far: 2)"


def test_a_spike_is_one_only_after_the_first_steps_and_a_resume_remembers_them() -> None:
    watch = HealthWatch(spike_factor=10, gradient_clip=1)
    for step in range(SETTLED - 1):
        assert watch.problem(step, 0.7, 1.0 + step % 3) is None  # median 2
    assert watch.problem(19, 0.7, 500.0) is None, "nothing is settled yet"
    assert watch.problem(20, 0.7, 19.9) is None
    sentence = "the gradient norm of step 21 is 20.1, more than 10 times its running median of 2"
    assert watch.problem(21, 0.7, 20.1) == sentence
    assert HealthWatch(10, 1, list(watch.norms)).problem(21, 0.7, 20.1) == sentence


def test_a_gradient_that_clipping_lets_pass_is_no_spike() -> None:
    watch = HealthWatch(spike_factor=10, gradient_clip=1)
    for step in range(SETTLED):
        assert watch.problem(step, 0.1, 5e-4) is None
    assert watch.problem(20, 0.1, 0.9) is None
    assert watch.problem(21, 0.1, 1.1) is not None


def test_the_ranks_that_differ_from_most_are_named() -> None:
    assert difference(7, [5, 5, 5]) is None
    assert "after step 7 the weights of rank 1 differ from those of the other ranks" in str(difference(7, [5, 6, 5]))
    assert "the weights of ranks 0, 3 differ from those" in str(difference(7, [1, 5, 5, 2]))
    assert "the weights of ranks 0, 1, 2, 3 differ from each other" in str(difference(7, [1, 5, 5, 1]))


def noisy(step: int) -> float:
    """Something without a trend, between -0.01 and 0.01."""
    return 0.01 * math.sin(step * step)


def test_a_winner_error_that_grows_for_long_is_warned_of_with_beta_and_omega() -> None:
    errors = [0.004 * step + noisy(step) for step in range(200)]
    settings = PreferenceSettings(name="cpo", beta=5000, omega_win=2, omega_lose=1.5)
    assert winner_warning(errors[: WINNER_JUDGED_FROM - 1], settings) is None
    warning = winner_warning(errors, settings)
    assert warning is not None and warning.startswith("the winner error has grown for 64 steps, lately to 0.22")  # 0.004 x 56
    advice = "a larger beta (now 5000), a smaller omega_win (now 2), a smaller omega_lose (now 1.5) or a smaller learning_rate"
    assert warning.endswith(f"look at its pictures, and try {advice}")
    other = winner_warning([*([0.02] * 64), *(0.02 + 1e-3 * step for step in range(200))], ObjectiveSettings(name="own"))
    assert other is not None and other.endswith("try a smaller learning_rate"), "what an objective is not told is not advised"


def test_a_winner_error_that_falls_hovers_or_levels_off_is_not() -> None:
    for error in (
        lambda step: -0.001 * step + noisy(step),
        noisy,
        lambda step: 0.04 * (1 - math.exp(-step / 20)) + noisy(step) / 5,
        lambda step: 0.002 * math.sqrt(step) + noisy(step) / 10,
    ):
        assert winner_warning([error(step) for step in range(1000)], PreferenceSettings(name="cpo")) is None
