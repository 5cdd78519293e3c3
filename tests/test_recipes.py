"""What the trainings of a configuration are made of: pictures, order, targets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cpo_ray.config import Config, load
from cpo_ray.core.plan import Item
from cpo_ray.data.buckets import Bucket
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.objectives import FrozenName, Objective, View, objective_of
from cpo_ray.objectives.cpo import CPO
from cpo_ray.objectives.sft import SFT
from cpo_ray.recipes import NoPicturesError, Training, alignment, expert_training
from cpo_ray.targets.expert import Expert, ExpertSpec, target_store
from cpo_ray.targets.reader import TargetReader
from cpo_ray.targets.store import TargetStore, TargetStoreError

TOY = Path(__file__).parents[1] / "jobs" / "configs" / "toy.toml"
PICTURES = {f"picture-{number}": Bucket(64, 64, 64) for number in range(12)}


def small(spec: ExpertSpec, *overrides: str) -> Config:
    """30 items of stage 2 on the twelve pictures of a tiny base: two epochs and a half of two draws."""
    lengths = ["preference.optimization.steps=5", "preference.optimization.global_batch=6", "targets.draws=2"]
    places = [f"model.base={spec.model.base}", f"data.folder={spec.dataset}", f"expert.adapter={spec.adapter}"]
    return load(TOY, [*lengths, *places, "targets.shard_size=8", *overrides])


def main_training(config: Config) -> Training:
    assert config.expert.adapter is not None
    return alignment(config, config.preference.objective, PICTURES, config.expert.adapter)


def produce_here(training: Training, store: TargetStore) -> int:
    """Compute the shards that are missing, without Ray; returns how often a frozen model was called."""
    missing, dataset = store.missing(training.plan.shards(8)), AnnotatedDataset.open(training.frozen.dataset)
    expert = Expert(training.frozen)
    for items in missing:
        store.write(items, expert(items, dataset.images([item.sample_id for item in items])), {})
    return expert.forwards


def order(training: Training) -> list[Item]:
    return [item for k in range(training.plan.steps) for item in training.plan.step(k).planned]


def test_another_training_seed_reads_the_targets_that_are_there(expert_spec: ExpertSpec, tmp_path: Path) -> None:
    trainings = [main_training(small(expert_spec, *more)) for more in ((), ("preference.seed=1",), ("preference.seed=2",))]
    stores = {target_store(training.frozen, tmp_path) for training in trainings}
    (store,) = stores
    assert produce_here(trainings[0], store) > 0
    assert [produce_here(training, store) for training in trainings[1:]] == [0, 0], "the expert is called for the first alone"
    assert [training.seed for training in trainings] == [0, 1, 2]
    orders = [order(training) for training in trainings]
    assert len({tuple(found) for found in orders}) == 3 and Counter(orders[0]) == Counter(orders[1]) == Counter(orders[2])
    for training in trainings:
        reader = TargetReader(store, training.plan.shards(8), timeout_seconds=0.1, run_id="none")
        assert all(reader.batch(training.plan.step(k)).expert is not None for k in range(training.plan.steps))
    # The run's own seed, said or not, is the training of before.
    assert main_training(small(expert_spec, "preference.seed=0")) == trainings[0]
    assert main_training(small(expert_spec, "run.seed=1")).plan.shards(8) != trainings[0].plan.shards(8)


def test_what_an_objective_needs_decides_on_its_targets_and_draws(expert_spec: ExpertSpec) -> None:
    supervised, two_sided = (main_training(small(expert_spec, f"preference.objective={name}")) for name in ("sft", "cpo"))
    assert (supervised.frozen.kind, supervised.frozen.adapter, supervised.frozen.mixture) == ("supervised", None, None)
    assert supervised.plan.draws == 3, "noise of its own at each of the two and a half visits"
    assert (two_sided.frozen.kind, two_sided.frozen.adapter, two_sided.plan.draws) == ("expert", expert_spec.adapter, 2)
    outside = main_training(small(expert_spec, "preference.objective=support.outside.objective:PULL"))
    assert (outside.name, outside.frozen) == ("pull", two_sided.frozen), "it reads what CPO reads"
    config = small(expert_spec, "preference.seed=5")
    first = expert_training(config, PICTURES)
    assert first.frozen.mixture == config.expert.conditions and first.objective.most_negatives is None
    assert (first.name, first.seed, first.plan.order) == ("expert", 0, None), "stage 1 keeps the run's seed"


def test_an_objective_that_compares_trains_on_the_pictures_that_win_a_pair(expert_spec: ExpertSpec) -> None:
    config = small(expert_spec, "preference.objective=dpo")
    losers = dict(zip(list(PICTURES)[:3], list(PICTURES)[3:6], strict=True))
    training = alignment(config, config.preference.objective, PICTURES, Path("expert"), losers)
    assert (training.frozen.kind, training.frozen.adapter, training.frozen.losers) == ("reference", None, losers)
    assert set(training.plan.sample_ids) == set(losers) and training.plan.draws == 2
    with pytest.raises(NoPicturesError, match="is better than another of the same prompt, and 'dpo' learns from such pairs"):
        alignment(config, config.preference.objective, PICTURES, Path("expert"), {})


@pytest.mark.parametrize(
    ("needs", "views", "sentence"),
    [
        (
            SFT.needs,
            (View(0, 0), View(0, 1)),
            r"two pictures and one text of each sample, so there is no View\(picture=0, text=1\)",
        ),
        (CPO.needs, (View(0, 0), View(1, 0)), "the expert's outputs are computed for one picture of each sample"),
    ],
)
def test_a_view_that_target_shards_do_not_hold_is_refused_before_anything_is_computed(
    needs: frozenset[FrozenName],
    views: tuple[View, ...],
    sentence: str,
    expert_spec: ExpertSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Objective("pair", CPO.settings, needs, CPO.function, views=views)
    monkeypatch.setattr("support.outside.objective.PULL", pair)
    config = small(expert_spec, "preference.objective=support.outside.objective:PULL")
    assert objective_of(config.preference.objective) is pair
    with pytest.raises(TargetStoreError, match=sentence):
        main_training(config)
