"""Target shards of pairs: two pictures under one text with the same noise, and the reference's output for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.plan import Batch, Item
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.models import family
from cpo_ray.objectives import View
from cpo_ray.objectives.dpo import DPO, PairSettings
from cpo_ray.targets.expert import Expert, ExpertSpec, frozen_inputs, target_store
from cpo_ray.targets.images import pictures_of
from cpo_ray.targets.reader import TargetReader
from cpo_ray.targets.store import frozen_fingerprint

ITEMS = (Item("picture-3", 0), Item("picture-1", 1), Item("picture-3", 1))
LOSERS = {"picture-3": "picture-5", "picture-1": "picture-7"}
WEIGHTS = (1.0, 1.0, 0.0)


@pytest.fixture(scope="module", params=FAMILIES.names)
def spec(request: pytest.FixtureRequest, expert_spec_of: Callable[[str], ExpertSpec]) -> ExpertSpec:
    torch.set_num_threads(1)
    return replace(expert_spec_of(request.param), kind="reference", adapter=None, losers=LOSERS)


def shard_of(spec: ExpertSpec) -> dict[str, Tensor]:
    return Expert(spec)(ITEMS, AnnotatedDataset.open(spec.dataset).images(pictures_of(ITEMS, spec.losers)))


@pytest.fixture(scope="module")
def shard(spec: ExpertSpec) -> dict[str, Tensor]:
    return shard_of(spec)


def test_the_pictures_of_a_pair_have_the_same_noise_and_time(spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    swapped = replace(spec, losers={"picture-3": "picture-3", "picture-1": "picture-1"})
    same = shard_of(swapped)
    for name in ("x_t", "target", "reference"):
        assert torch.equal(same[f"picture1.{name}"], same[name]), "a picture paired with itself"
        assert torch.equal(same[name], shard[name]), "the first picture does not depend on the second"
        assert not torch.equal(shard[f"picture1.{name}"], shard[name])
    process = family(spec.model).load_process(spec.model)
    clean = [
        process.predict_x0(shard[f"{prefix}x_t"].float(), shard[f"{prefix}target"].float(), shard["timestep"])
        for prefix in ("", "picture1.")
    ]
    noisy = [shard[f"{prefix}x_t"].float() for prefix in ("", "picture1.")]
    again = [process.add_noise(x0, torch.zeros_like(x0), shard["timestep"]) for x0 in clean]
    torch.testing.assert_close(noisy[0] - again[0], noisy[1] - again[1], rtol=0, atol=0.02)
    assert not any(name.startswith(("positive_", "negative_", "null_")) for name in shard)


def test_models_equal_to_the_reference_have_nothing_to_prefer(spec: ExpertSpec, shard: dict[str, Tensor], tmp_path: Path) -> None:
    """Through the store and the reader, as the trainer does it."""
    store = target_store(spec, tmp_path)
    store.write(ITEMS, shard, {})
    batch = TargetReader(store, [ITEMS], timeout_seconds=1, run_id="run").batch(Batch(ITEMS, WEIGHTS))
    found = family(spec.model)
    denoiser = found.load_denoiser(spec.model)
    with torch.no_grad():
        predictions = found.predict(denoiser, *batch.inputs(torch.float32, DPO.views))
    assert len(predictions) == 2 * len(ITEMS)
    settings = PairSettings(name="dpo", beta=100.0)
    _, metrics = DPO(batch.outputs(predictions, DPO, settings), settings)
    torch.testing.assert_close(metrics["open"], torch.full((3,), 0.5), rtol=0, atol=1e-3)
    assert float(metrics["distance_to_reference"].max()) < 1e-9
    for number, view in enumerate(DPO.views):
        one = batch.inputs(torch.float32, (view,))
        assert torch.equal(one[0], batch.inputs(torch.float32, DPO.views)[0][3 * number : 3 * number + 3])
    assert torch.equal(batch.inputs(torch.float32, (View(1, 0),))[0], batch.pictures[1].x_t)


def test_targets_of_other_pairs_have_another_address(spec: ExpertSpec) -> None:
    fingerprint = frozen_fingerprint(frozen_inputs(spec))
    assert fingerprint != frozen_fingerprint(frozen_inputs(replace(spec, losers={**LOSERS, "picture-1": "picture-2"})))
    assert fingerprint == frozen_fingerprint(frozen_inputs(replace(spec, losers=dict(reversed(LOSERS.items())))))
    with pytest.raises(ValueError, match="are of one picture; give no losers"):
        replace(spec, kind="expert", adapter=Path("adapter"))
