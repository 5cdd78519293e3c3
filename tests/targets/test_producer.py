"""The actor pool that fills the target store, on a real Ray, and the reader that waits for it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.processes import processes

from cpo_ray.config import Targets
from cpo_ray.core.plan import Batch, Item, Plan
from cpo_ray.targets.expert import ExpertSpec, target_store
from cpo_ray.targets.producer import BackgroundProducer, ProductionError, ProductionReport, produce
from cpo_ray.targets.reader import TargetBatch, TargetReader, TargetsUnavailable
from cpo_ray.targets.store import Items, TargetStore

PLAN = Plan.of_epochs([f"picture-{number}" for number in range(12)], seed=5, global_batch=4, draws=1, epochs=1)
SHARDS = PLAN.shards(1)


def settings(folder: Path, actors: int = 1) -> Targets:
    return Targets(folder=folder, max_actors=actors, min_actors=actors, cpus_per_actor=0.5)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@dataclass(frozen=True)
class Produced:
    """A store that one actor has filled, and what was read of it meanwhile. The actor died once and was started again."""

    folder: Path
    report: ProductionReport
    seen: list[tuple[int, int]]
    batches: list[TargetBatch]
    waited_seconds: float


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory, ray_session: None, expert_spec: ExpertSpec) -> Produced:
    folder, seen = tmp_path_factory.mktemp("targets"), list[tuple[int, int]]()

    def follow(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 1:  # the only actor dies while there is work left
            (actor,) = processes("ExpertActor")
            actor.kill()

    store = target_store(expert_spec, folder)
    store.root.mkdir()
    store.failure_marker("run").write_text(json.dumps({"sentence": "an older producer failed"}))
    with BackgroundProducer(expert_spec, SHARDS, settings(folder), "run", follow) as producer:
        reader = TargetReader(store, SHARDS, timeout_seconds=600, run_id="run")
        batches = [reader.batch(PLAN.step(k)) for k in range(PLAN.steps)]
        return Produced(folder, producer.join(), seen, batches, reader.waited_seconds)


@pytest.mark.ray
def test_training_reads_what_is_produced_beside_it_though_an_actor_dies(produced: Produced, expert_spec: ExpertSpec) -> None:
    report = produced.report
    assert (report.shards_written, report.already_there, report.samples, report.expert_forwards) == (12, 0, 12, 24)
    assert produced.seen == [(done, 12) for done in range(1, 13)]
    assert produced.waited_seconds > 0
    store = target_store(expert_spec, produced.folder)
    whole = {items[0]: store.read(items) for items in SHARDS}
    for k, batch in enumerate(produced.batches):
        assert batch.items == PLAN.step(k).items
        assert batch.expert is not None
        for row, item in enumerate(batch.items):
            shard = whole[item]
            assert torch.equal(batch.pictures[0].x_t[row], shard["x_t"][0].float())
            assert torch.equal(batch.expert.positive_minus_all[row], shard["positive_minus_all"][0])
            prompt = shard["text.prompt_embeds"][shard["prompt_index"][0]]
            assert torch.equal(batch.text["prompt_embeds"][row], prompt.float())


@pytest.mark.ray
def test_a_stopped_producer_keeps_what_it_wrote_and_two_actors_add_the_same_bytes_only_once(
    produced: Produced, expert_spec: ExpertSpec, tmp_path: Path
) -> None:
    stopped = threading.Event()
    first = produce(expert_spec, SHARDS, settings(tmp_path), lambda done, total: stopped.set(), stopped.is_set)
    assert first.shards_written == 1
    missing = len(target_store(expert_spec, tmp_path).missing(SHARDS))
    assert 0 < missing < 12
    rest = produce(expert_spec, SHARDS, settings(tmp_path, actors=2))
    assert (rest.shards_written, rest.already_there, rest.samples) == (missing, 12 - missing, missing)
    assert files(produced.folder) == files(tmp_path)
    assert len(files(produced.folder)) == 12 + len(["about.json"])
    again = produce(expert_spec, SHARDS, settings(produced.folder))
    assert (again.shards_written, again.already_there, again.samples, again.expert_forwards) == (0, 12, 0, 0)


@pytest.mark.ray
def test_a_corrupt_picture_stops_producer_and_reader_with_its_sentence(
    ray_session: None, expert_spec: ExpertSpec, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (source,) = expert_spec.dataset.glob("*.parquet")
    table = pq.read_table(source)
    pictures = table["image"].to_pylist()
    pictures[table["id"].to_pylist().index("picture-8")] = b"no picture"
    number = table.schema.get_field_index("image")
    pq.write_table(table.set_column(number, table.schema.field(number), [pictures]), data / source.name)

    spec = replace(expert_spec, dataset=data)
    sentence = "sample 'picture-8': the file is not an image of a known format"
    with BackgroundProducer(spec, SHARDS[6:], settings(tmp_path), "run") as producer:
        with pytest.raises(ProductionError, match=sentence):
            producer.join()
        reader = TargetReader(target_store(spec, tmp_path), SHARDS, timeout_seconds=60, run_id="run")
        with pytest.raises(TargetsUnavailable, match=sentence):
            reader.batch(Batch((Item("picture-8", 0),), (1.0,)))


@pytest.mark.ray
def test_an_actor_that_cannot_start_gives_a_sentence(ray_session: None, expert_spec: ExpertSpec, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(ProductionError, match="a worker that computes targets failed: "):
        produce(replace(expert_spec, adapter=adapter), SHARDS, settings(tmp_path))


def test_a_reader_gives_up_after_its_time(tmp_path: Path) -> None:
    items: Items = (Item("a", 0),)
    reader = TargetReader(TargetStore(tmp_path, "0" * 32), [items], timeout_seconds=0.2, run_id="run")
    started = time.monotonic()
    with pytest.raises(TargetsUnavailable, match=r"no target shard came at .*\.safetensors within 0\.2 s"):
        reader.batch(Batch(items, (1.0,)))
    assert 0.2 <= time.monotonic() - started < 2


def test_a_reader_counts_the_time_it_waited_and_ignores_the_failure_of_another_run(tmp_path: Path) -> None:
    items: Items = (Item("a", 0),)
    store = TargetStore(tmp_path, "0" * 32)
    tensors = {"x_t": torch.ones(1, 2, 2, 2, dtype=torch.float16), "timestep": torch.tensor([7])}
    tensors |= {"prompt_index": torch.tensor([0]), "text.words": torch.ones(1, 3, dtype=torch.float16)}
    store.root.mkdir()
    store.failure_marker("other").write_text("{}")
    reader = TargetReader(store, [items], timeout_seconds=10, run_id="run")
    threading.Timer(0.3, store.write, (items, tensors, {})).start()
    batch = reader.batch(Batch(items, (1.0,)))
    assert batch.timestep.tolist() == [7]
    assert (batch.pictures[0].target, batch.expert) == (None, None)
    assert 0.25 < reader.waited_seconds < 2
