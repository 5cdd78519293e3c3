"""Training on stored targets against the loop that a user would write: θ1 four times and the reference inside every step.

    python benchmarks/targets_against_naive.py [--steps 12] [--batch 16]

Both train the same LoRA of the embedded base on the same samples in this process, alternating step by step, so that whatever
else the machine does hits both.  Neither Ray nor DeepSpeed takes part: the ratio is about the arithmetic.

Prediction, written before the first run: a CPO sample costs 4 + 1 frozen forwards, and one forward and backward of the student
with a frozen base (a forward's worth for activations, a little for the adapter: 2 to 3 units in all).  Encoding adds a little.
So a naive step costs 8 units and a step on targets 3: naive / targets ≈ 2.7 once targets are there; computing them with both
adapters merged and four conditions in one forward costs 5 units, so one run alone gains nothing and k runs on the same targets
cost (5 + 3 k) / (8 k) of k naive ones: 0.69 at k = 2, 0.45 at k = 8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from cpo_ray.config import Lora, Model
from cpo_ray.core.plan import Batch, Plan
from cpo_ray.core.prompts import condition_texts
from cpo_ray.core.randomness import counter_generator
from cpo_ray.data.picture import decode, fit
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.dataset import make_dataset
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.objectives import ExpertDifferences
from cpo_ray.objectives.cpo_stabilised import CPO_STABILISED, StabilisedSettings
from cpo_ray.targets.expert import Expert, ExpertSpec, target_store
from cpo_ray.targets.reader import TargetReader

TREE = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"
MODEL = Model(family="sdxl", base=str(ToyDomain.base), resolution=64)
SETTINGS = StabilisedSettings(name="cpo_s", omega_win=2.0, omega_lose=2.0, beta=1000.0)


class Student:
    """A LoRA on the base, and one optimizer step on given frozen outputs."""

    def __init__(self) -> None:
        self.family = family(MODEL)
        self.denoiser = self.family.load_denoiser(MODEL)
        self.family.add_lora(self.denoiser, Lora(), seed=0)
        self.optimizer = torch.optim.AdamW([p for p in self.denoiser.parameters() if p.requires_grad], 1e-4)

    def step(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: dict[str, torch.Tensor], expert: ExpertDifferences | None
    ) -> None:
        prediction = self.family.predict(self.denoiser, x_t, t, conditioning)
        losses, _ = CPO_STABILISED((CPO_STABILISED.outputs(prediction, None, None, expert, SETTINGS),), SETTINGS)
        losses.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Naive:
    """The public DPO script's way: everything in the step, one forward per condition, the expert's adapter not merged."""

    def __init__(self, dataset: AnnotatedDataset, adapter: Path) -> None:
        self.student, self.dataset, self.tree = Student(), dataset, load_hierarchy(TREE)
        self.family = self.student.family
        self.encoders = self.family.load_encoders(MODEL, torch.device("cpu"))
        self.process = self.family.load_process(MODEL)
        self.reference = self.family.load_denoiser(MODEL)
        self.expert = self.family.load_pipeline(MODEL, adapter).components[self.family.denoiser].eval().requires_grad_(False)

    def __call__(self, batch: Batch) -> None:
        ids = [item.sample_id for item in batch.items]
        fitted = [fit(decode(image), (MODEL.resolution, MODEL.resolution)) for image in self.dataset.images(ids)]
        pixels = torch.stack([torch.tensor(p).permute(2, 0, 1) for p, _ in fitted]).float() / 127.5 - 1
        micro = self.encoders.micro_conditioning([size for _, size in fitted])
        x0 = self.encoders.encode_pictures(pixels)
        noise = torch.stack(
            [
                torch.from_numpy(counter_generator(0, i.sample_id, i.draw, "noise").standard_normal(tuple(x0.shape[1:]), "f4"))
                for i in batch.items
            ]
        )
        u = torch.tensor([counter_generator(0, i.sample_id, i.draw, "timestep").random() for i in batch.items])
        t = self.process.timestep(u)
        x_t = self.process.add_noise(x0, noise, t)
        count, limit = self.encoders.count_tokens, self.encoders.token_limit
        texts = [condition_texts(self.dataset.labels(i), self.tree, count, limit)[0] for i in ids]

        def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
            return self.encoders.encode_prompts(prompts) | micro

        content = encode([x.content for x in texts])
        with torch.no_grad():
            outputs = [
                self.family.predict(self.expert, x_t, t, encode([getattr(x, name) for x in texts]))
                for name in ("positive", "negative", "null", "all")
            ]
            reference = self.family.predict(self.reference, x_t, t, content)
        self.student.step(x_t, t, content, ExpertDifferences.from_outputs(reference, *outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = make_dataset(folder / "data", options.steps * options.batch * 2, 1, load_hierarchy(TREE))
        adapter = _random_adapter(folder / "adapter")
        spec = ExpertSpec("expert", MODEL, folder / "data", TREE, 0, adapter=adapter)
        plan = Plan.of_steps(dataset.split("train"), 0, options.batch, 4, steps=options.steps)
        shards, store, frozen = plan.shards(options.batch), target_store(spec, folder / "targets"), Expert(spec)
        naive, student, reader = Naive(dataset, adapter), Student(), TargetReader(store, shards, 1.0, "benchmark")
        seconds: dict[str, list[float]] = {"produce": [], "train on targets": [], "naive": []}
        for number, items in enumerate(shards):
            batch = plan.step(number)
            with _timed(seconds["produce"]):
                store.write(items, frozen(items, dataset.images([i.sample_id for i in items])), {})
            with _timed(seconds["train on targets"]):
                targets = reader.batch(batch)
                student.step(*targets.inputs(torch.float32), targets.expert)
            with _timed(seconds["naive"]):
                naive(batch)
    # The first step of each pays for memory that later ones reuse.
    produce, train, whole = (sorted(v[1:])[len(v) // 2] / options.batch for v in seconds.values())
    result = {
        "cpu_milliseconds_per_sample": {"produce": 1e3 * produce, "train on targets": 1e3 * train, "naive": 1e3 * whole},
        "naive / train on targets": whole / train,
        **{f"{k} runs on shared targets / {k} naive runs": (produce + k * train) / (k * whole) for k in (1, 2, 4, 8)},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


class _timed:
    """Adds the CPU time of a block to a list: on one thread it is what the work costs, whatever else the machine does."""

    def __init__(self, into: list[float]) -> None:
        self.into = into

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.into.append(time.process_time() - self.started)


def _random_adapter(folder: Path) -> Path:
    """Make an expert with random weights: its knowledge does not change its cost."""
    sdxl = family(MODEL)
    denoiser = sdxl.load_denoiser(MODEL)
    names = set(sdxl.add_lora(denoiser, Lora(), seed=1))
    torch.manual_seed(1)
    for name, parameter in denoiser.named_parameters():
        if name in names:
            parameter.data.normal_(0, 0.02)
    sdxl.save_adapter(denoiser, None, folder)
    return folder


if __name__ == "__main__":
    main()
