"""SDXL and FLUX.1 at full size on one GPU: the expert stage, the training step on targets, both, and the loop one would write.

    python benchmarks/gpu_step.py --output benchmarks/results/gpu_step.json        # one GPU; elsewhere add --size small

Weights are random, pictures are drawn; everything else is what a run does: `Expert` from encoded pictures to a shard on disk,
`TargetReader` from there to the GPU, objective, backward pass, AdamW on float32 copies. It takes torch, diffusers, transformers,
peft, pydantic, pyarrow, pillow, pyyaml and scipy; neither Ray nor DeepSpeed nor MLflow. The naive loop is the public Diffusion-DPO
script made to do CPO: one picture at a time, θ1 with its adapter beside the weights four times and the reference once inside every
step, each text encoded by itself, nothing compiled. All cases take turns; medians over the rounds are written after every round.

Prediction, written before any GPU was at hand. One call of each model is counted first (operations, kernels); a part then takes the
longer of operations / (share of the matrix rate measured in the same run) and kernels x 10 µs, which is what Python and torch need
to launch one. Shares: 0.55 for frozen forwards, 0.65 compiled, 0.45 for the training step (0.55 compiled), 0.4 for texts, 0.2 for
the VAE, whose float32 convolutions run in TF32 (0.4 in float16), and 30 ms of one CPU core per megapixel to decode and resize.
At 790 TFLOP/s that gives per sample, in seconds, with 6.76 TFLOP a forward of SDXL and 74.4 of FLUX.1, 2.1 and 2.2 times that in a
LoRA step, 4.9 for the VAE, 0.11 and 4.85 a text:

                      five forwards  compiled  VAE    texts  pictures  step   compiled  CPO sample  naive
    SDXL LoRA         0.078          0.068     0.031  0.002  0.030     0.040  0.033     0.16        0.45
    FLUX.1 LoRA       0.86           0.75      0.031  0.077  0.030     0.46   0.38      1.3         1.6

The naive SDXL is bound by launches (a U-Net has some 2,000 kernels, an adapter beside the weights 2,000 more). The aims are 0.14 s
for SDXL, 1.5 s for FLUX.1, and a third of the naive loop for SDXL: by this the first is missed by the VAE and the pictures alone,
and met with --vae float16 and pictures decoded ahead.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from counting import Cost, cost_of
from PIL import Image
from random_models import SIZES, random_family
from torch import Tensor, nn

from cpo_ray.config import Lora, Model
from cpo_ray.data.picture import decode, fit
from cpo_ray.data.shards import AnnotatedDataset, write_shards
from cpo_ray.data.validate import annotated_row
from cpo_ray.models.base import DTYPES, Family
from cpo_ray.objectives import ExpertDifferences, FrozenOutputs, ObjectiveParameters, get_objective
from cpo_ray.plan import Batch, Item
from cpo_ray.prompts import Labels, condition_texts
from cpo_ray.targets.expert import Expert, ExpertSpec
from cpo_ray.targets.reader import TargetReader
from cpo_ray.targets.store import TargetStore
from cpo_ray.toy.render import render, sample_scene
from hierarchy import load_hierarchy

TREE = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"
OMEGA, BETA = 2.0, 5000.0
NAMES = ("positive", "negative", "null", "all")
#: Samples in a shard, which is the expert's batch, and in a micro-batch of the trained model.
BATCHES = {"sdxl": (8, 4), "flux": (2, 1)}
#: Dense bfloat16 by the data sheet, TFLOP/s: what model FLOP utilisation (MFU) refers to.
DATA_SHEET = {"NVIDIA H200": 989.5, "NVIDIA H100 80GB HBM3": 989.5, "NVIDIA A100-SXM4-80GB": 312.0}
SHARES = {
    "forward": 0.55,
    "compiled forward": 0.65,
    "step": 0.45,
    "compiled step": 0.55,
    "text": 0.4,
    "VAE": 0.2,
    "half VAE": 0.4,
}
SECONDS_PER_KERNEL, SECONDS_PER_MEGAPIXEL = 10e-6, 0.030


@dataclass
class Case:
    """One thing to time: a call, the samples it does, the operations it takes per sample, what was predicted, what came out."""

    call: Callable[[], object]
    samples: int
    teraflop: float
    predicted: float
    seconds: list[float] = field(default_factory=list)
    gigabytes: float = 0.0
    failure: str = ""


class Student:
    """The trained model and its plain step: gradients of micro-batches, clipping, AdamW on float32 copies, as the engine has it."""

    def __init__(self, family: Family, model: Model, parameters: str, compiled: bool) -> None:
        self.family, self.dtype = family, DTYPES[model.dtype]
        self.objective, self.parameters = get_objective("cpo_s"), ObjectiveParameters(BETA)
        self.denoiser = family.load_denoiser(model)
        if parameters == "lora":
            family.add_lora(self.denoiser, Lora(), seed=0)
            self.denoiser.to(self.dtype)
        else:
            for module in self.denoiser.modules():  # weights of its own: a frozen model has the others
                for name, values in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(values.detach().clone()))
        if compiled:
            family.compile_blocks(self.denoiser)
        self.trained = [values for values in self.denoiser.parameters() if values.requires_grad]
        self.masters = [values.detach().float().clone() for values in self.trained]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-6, fused=True)

    def backward(self, x_t: Tensor, timestep: Tensor, conditioning: dict[str, Tensor], frozen: FrozenOutputs) -> None:
        prediction = self.family.predict(self.denoiser, x_t, timestep, conditioning)
        losses, _ = self.objective(prediction, frozen, self.parameters)
        losses.mean().backward()

    def step(self) -> None:
        for master, values in zip(self.masters, self.trained, strict=True):
            master.grad = None if values.grad is None else values.grad.float()
            values.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.trained, self.masters)


class Bench:
    """Everything of one family on one device, and the cases that use it."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path, device: torch.device) -> None:
        self.device, self.options, self.name = device, options, name
        self.size = SIZES[name, options.size]
        shard, micro = BATCHES[name]
        self.batch, self.micro = options.batch or shard, min(options.micro_batch or micro, options.batch or shard)
        dtype = "bfloat16" if device.type == "cuda" else "float32"
        self.model = Model(family=name, base="random", dtype=dtype, resolution=self.size.pixels)
        self.family = random_family(name, self.size, device)
        self.items = [Item(f"picture-{number}", 0) for number in range(self.batch)]
        self.dataset, self.tree = _dataset(folder / "data", self.size.pixels, self.items), load_hierarchy(TREE)
        self.images = self.dataset.images([item.sample_id for item in self.items])
        half = folder if options.vae == "float16" else None
        spec = ExpertSpec("expert", self.model, folder / "data", TREE, 0, adapter=folder, vae=half, compile=options.compile,
                          device=str(device))  # fmt: skip
        self.expert = Expert(spec, self.family)
        self.encoders = self.family.load_encoders(self.model, device, half)
        self.process = self.family.load_process(self.model)
        self.student = Student(self.family, self.model, options.parameters, options.compile)
        self.reference = self.family.load_denoiser(self.model)
        self.live = self.family.load_denoiser(self.model)
        self.family.add_lora(self.live, Lora(), seed=1)
        self.live.to(DTYPES[dtype]).requires_grad_(False)
        self.store = TargetStore(folder / "targets", "benchmark")

    def expert_stage(self) -> None:
        self.store.write(self.items, self.expert(self.items, self.images), {})

    def training_step(self) -> None:
        reader = TargetReader(self.store, [tuple(self.items)], 1.0, "benchmark")
        for start in range(0, self.batch, self.micro):
            items = tuple(self.items[start : start + self.micro])
            targets = reader.batch(Batch(items, (1.0,) * len(items)), self.device)
            frozen = targets.frozen_outputs(self.student.objective, OMEGA, OMEGA)
            self.student.backward(*targets.inputs(self.student.dtype), frozen)
        self.student.step()

    def cpo_sample(self) -> None:
        self.expert_stage()
        self.training_step()

    def naive_loop(self) -> None:
        """As many samples and one optimizer step, one by one."""
        for item, image in zip(self.items, self.images, strict=True):
            picture, micro = self.picture(image)
            x0 = self.encoders.encode_pictures(picture)
            timestep = self.process.timestep(torch.rand(1, dtype=torch.float64)).to(self.device)
            x_t = self.process.add_noise(x0, torch.randn_like(x0), timestep).to(self.student.dtype)
            encoders = self.encoders
            texts, _ = condition_texts(
                self.dataset.labels(item.sample_id), self.tree, encoders.count_tokens, encoders.token_limit
            )
            content = self.encoders.encode_prompts([texts.content]) | micro
            with torch.no_grad():
                conditions = [self.encoders.encode_prompts([getattr(texts, name)]) | micro for name in NAMES]
                outputs = [self.family.predict(self.live, x_t, timestep, condition) for condition in conditions]
                reference = self.family.predict(self.reference, x_t, timestep, content)
            expert = ExpertDifferences.from_outputs(reference, *outputs)
            frozen = FrozenOutputs(None, expert.reference, expert.winning(OMEGA), expert.losing(OMEGA))
            self.student.backward(x_t, timestep, content, frozen)
        self.student.step()

    def picture(self, image: bytes) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, size = fit(decode(image), self.size.pixels)
        return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1, self.encoders.micro_conditioning([size])

    def costs(self) -> dict[str, Cost]:
        """What one sample takes, counted in one eager call each."""
        picture, micro = self.picture(self.images[0])
        found: dict[str, Cost] = {}
        found["VAE"], x0 = cost_of(lambda: self.encoders.encode_pictures(picture))
        found["text"], text = cost_of(lambda: self.encoders.encode_prompts(["a red circle"]))
        timestep = self.process.timestep(torch.rand(1, dtype=torch.float64)).to(self.device)
        arguments = x0.to(self.student.dtype), timestep, text | micro
        with torch.no_grad():
            for name, denoiser in (("forward", self.reference), ("live forward", self.live)):
                found[name], output = cost_of(lambda denoiser=denoiser: self.family.predict(denoiser, *arguments))
        frozen = FrozenOutputs(None, output.float(), output.float() + 0.1, output.float() - 0.1)
        found["step"], _ = cost_of(lambda: self.student.backward(*arguments, frozen))
        self.student.step()
        return found

    def cases(self, costs: dict[str, Cost], rate: float) -> dict[str, Case]:
        """All cases with their predictions at a matrix rate in TFLOP/s."""
        batch, options = self.batch, self.options
        flops = {name: cost.teraflop for name, cost in costs.items()}

        def seconds(part: str, share: str, together: int) -> float:
            """Per sample, of a part done for so many samples at once."""
            return max(flops[part] / (SHARES[share] * rate), costs[part].kernels * SECONDS_PER_KERNEL / together)

        vae = "half VAE" if options.vae == "float16" else "VAE"
        pictures = SECONDS_PER_MEGAPIXEL * (1.25 * self.size.pixels) ** 2 / 1.25**2 / 2**20
        around = pictures + seconds("VAE", vae, batch) + 5 * seconds("text", "text", 5 * batch)
        frozen = 5 * flops["forward"]
        stage_flops = frozen + flops["VAE"] + 5 * flops["text"]
        cases: dict[str, Case] = {}

        def add(name: str, call: Callable[[], object], teraflop: float, predicted: float) -> None:
            cases[name] = Case(call, batch, teraflop, predicted)

        def eager(call: Callable[[], object]) -> Callable[[], object]:
            def uncompiled() -> object:
                with torch.compiler.set_stance("force_eager") if options.compile else nullcontext():
                    return call()

            return uncompiled

        stage = {}
        for kind in ("", "compiled ") if options.compile else ("",):
            theta, label = 4 * seconds("forward", f"{kind}forward", 4 * batch), f", {kind.strip()}" if kind else ""
            wrap = (lambda call: call) if kind else eager
            stage[kind] = around + seconds("forward", "forward", batch) + theta, seconds("step", f"{kind}step", self.micro)
            add(f"expert stage{label}", wrap(self.expert_stage), stage_flops, stage[kind][0])
            add(f"training step{label}", wrap(self.training_step), flops["step"], stage[kind][1])
            add(f"CPO sample{label}", wrap(self.cpo_sample), stage_flops + flops["step"], sum(stage[kind]))
        naive = pictures + seconds("VAE", vae, 1) + 5 * seconds("text", "text", 1) + seconds("forward", "forward", 1)
        naive += 4 * seconds("live forward", "forward", 1) + seconds("step", "step", 1)
        flop = stage_flops - 4 * flops["forward"] + 4 * flops["live forward"] + flops["step"]
        add("naive loop", eager(self.naive_loop), flop, naive)
        stacked = torch.cat([self.picture(image)[0] for image in self.images])
        add("  pictures", lambda: [self.picture(image) for image in self.images], 0.0, pictures)
        add("  VAE", lambda: self.encoders.encode_pictures(stacked), flops["VAE"], seconds("VAE", vae, batch))
        texts = ["text"] * (5 * batch)
        add("  texts", lambda: self.encoders.encode_prompts(texts), 5 * flops["text"], 5 * seconds("text", "text", 5 * batch))
        return cases


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and return what is written."""
    options = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile is None:
        options.compile = device.type == "cuda"
    record = _record(options, device)
    print(record["what"], flush=True)
    for name in ("sdxl", "flux") if options.family == "both" else (options.family,):
        with tempfile.TemporaryDirectory() as folder:
            record["families"][f"{name} {options.parameters}"] = {}
            _measure(name, options, Path(folder), device, record)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return record


def _measure(name: str, options: argparse.Namespace, folder: Path, device: torch.device, record: dict[str, Any]) -> None:
    rate, peak = record["matrix_teraflop_per_second"], DATA_SHEET.get(record["hardware"]["device"])
    bench = Bench(name, options, folder, device)
    with torch.compiler.set_stance("force_eager") if options.compile else nullcontext():
        costs = bench.costs()
    result = record["families"][f"{name} {options.parameters}"]
    result |= {"shard": bench.batch, "micro_batch": bench.micro, "counted_per_sample": {k: vars(c) for k, c in costs.items()}}
    cases = bench.cases(costs, rate)
    for round_number in range(options.rounds + 1):
        for label, case in cases.items():
            if not case.failure:
                _time(case, device, keep=round_number > 0)
                print(f"\r{name} round {round_number} of {options.rounds}: {label:<30}", end="", flush=True)
        if round_number:
            result["cases"] = {label.strip(): _row(case, peak) for label, case in cases.items()}
            result["ratios"] = _ratios(result["cases"])
            if options.output:
                options.output.write_text(json.dumps(record, indent=1) + "\n")
    print("\r" + _table(f"{name} {options.parameters}", cases, result))


def _time(case: Case, device: torch.device, keep: bool) -> None:
    """One call; the first of each, with compilation and new memory, is not kept."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            case.call()
            end.record()
            torch.cuda.synchronize()
            seconds = start.elapsed_time(end) / 1e3
            case.gigabytes = max(case.gigabytes, (torch.cuda.max_memory_allocated() - before) / 1e9)
        else:
            started = time.perf_counter()
            case.call()
            seconds = time.perf_counter() - started
        if keep:
            case.seconds.append(seconds / case.samples)
    except torch.OutOfMemoryError as error:
        case.failure = str(error).partition(".")[0]


def _row(case: Case, peak: float | None) -> dict[str, Any]:
    if case.failure:
        return {"predicted_seconds_per_sample": case.predicted, "failed": case.failure}
    seconds = median(case.seconds)
    return {
        "predicted_seconds_per_sample": case.predicted,
        "seconds_per_sample": seconds,
        "measured / predicted": seconds / case.predicted,
        "fastest": min(case.seconds),
        "slowest": max(case.seconds),
        "samples_per_second": 1 / seconds,
        "teraflop_per_second": case.teraflop / seconds,
        "mfu": None if peak is None else case.teraflop / seconds / peak,
        "gigabytes_beside_weights": case.gigabytes or None,
    }


def _ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    naive = rows["naive loop"].get("seconds_per_sample")
    names = [name for name, row in rows.items() if name.startswith(("CPO sample", "training step")) and "failed" not in row]
    return {} if naive is None else {f"naive loop / {name}": naive / rows[name]["seconds_per_sample"] for name in names}


def _table(title: str, cases: dict[str, Case], result: dict[str, Any]) -> str:
    lines = [f"{title:<26}{'predicted':>11}{'measured':>11}{'ratio':>7}{'TFLOP/s':>9}{'MFU':>7}{'GB':>7}   (seconds per sample)"]
    for label, case in cases.items():
        row = result["cases"][label.strip()]
        if case.failure:
            lines.append(f"{label:<26}{case.predicted:>11.4f}   {case.failure}")
            continue
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.2f}"
        lines.append(
            f"{label:<26}{case.predicted:>11.4f}{row['seconds_per_sample']:>11.4f}{row['measured / predicted']:>7.2f}"
            f"{row['teraflop_per_second']:>9.3g}{mfu:>7}{case.gigabytes:>7.1f}"
        )
    return "\n".join([*lines, *(f"{name}: {ratio:.2f}" for name, ratio in result["ratios"].items())])


def _record(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What is known before anything is measured."""
    gpu = device.type == "cuda"
    complete = gpu and options.size == "full"
    what = "one GPU, models at their published size" if complete else (
        f"{'a GPU' if gpu else 'CPU'}, {options.size} configurations: THE GPU FIGURES OF THE REAL MODELS ARE MISSING"
    )  # fmt: skip
    hardware = {"device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()}
    hardware |= {"gigabytes": torch.cuda.mem_get_info()[1] / 1e9} if gpu else {"threads": torch.get_num_threads()}
    return {
        "what": what,
        "gpu_figures": "present" if complete else "missing",
        "commit": options.commit or _commit(),
        "hardware": hardware,
        "versions": {name: _version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        "settings": {key: value for key, value in vars(options).items() if key not in ("output", "commit")},
        "shares": SHARES,
        "matrix_teraflop_per_second": _matrix_rate(device),
        "families": {},
    }


def _matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a large matrix product on random data, in the dtype of the models: the ceiling that shares refer to."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    case = Case(lambda: left @ right, 1, 2 * size**3 / 1e12, 0.0)
    for number in range(13):
        _time(case, device, keep=number > 2)
    return case.teraflop / median(case.seconds)


def _dataset(folder: Path, pixels: int, items: list[Item]) -> AnnotatedDataset:
    """Square JPEGs, a quarter larger than the model's pictures, so that they are resized, with grain, so that they are no small files."""
    generator, tree, rows = np.random.default_rng(0), load_hierarchy(TREE), []
    side = pixels * 5 // 4
    for item in items:
        scene, stream = sample_scene(generator), io.BytesIO()
        large = np.asarray(Image.fromarray(render(scene)).resize((side, side)), dtype=np.float32)
        grain = generator.normal(0, 8, large.shape)
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        labels = Labels(scene.content.prompt, scene.positive_ids, scene.negative_ids)
        rows.append(annotated_row(item.sample_id, stream.getvalue(), labels, "renderer", tree))
    write_shards(rows, folder)
    return AnnotatedDataset.open(folder)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["sdxl", "flux", "both"], default="both")
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--parameters", choices=["lora", "full"], default="lora")
    parser.add_argument("--batch", type=int, help="samples per shard, the expert's batch; 8 for SDXL and 2 for FLUX.1 without it")
    parser.add_argument("--micro-batch", type=int, help="samples per forward of the trained model; 4 and 1 without it")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="also time compiled blocks; on GPUs by default")
    parser.add_argument("--vae", choices=["float32", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", help="what this is a copy of, where there is no git")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
