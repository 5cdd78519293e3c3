"""Every family at full size on one GPU: the expert stage, the training step on targets, both, and the naive loop.

    python benchmarks/gpu_step.py --output benchmarks/results/gpu_step.json        # on a GPU; elsewhere add --size small

Weights are random and pictures are drawn. The rest is what a run does: `Expert`, from encoded pictures to a shard on disk,
`TargetReader` from there to the GPU, objective, backward pass, AdamW on float32 copies. It takes torch, diffusers, transformers,
peft, pydantic, pyarrow, pillow, pyyaml and scipy; neither Ray nor DeepSpeed nor MLflow. The naive loop is the public script of
Diffusion-DPO made to do CPO: one picture at a time, inside every step θ1 four times with its adapter beside the weights and the
reference once, each text encoded by itself, nothing compiled. All cases take turns; medians are written after every round, into
a file that may hold other families and parameters of the same commit and machine. On CPU it is CPU time: others may be at work.

Prediction, written before any GPU was at hand. One call of each model is counted first (operations, kernels). A part then takes
the longer of operations / (share of the matrix rate measured in the same run) and kernels x 10 µs, which is what Python and torch
need to launch one. Shares: 0.55 for frozen forwards, 0.65 compiled, 0.45 for the training step, 0.55 compiled, 0.4 for texts, 0.2
for the VAE, whose float32 convolutions run in TF32 (0.4 in float16), and 30 ms of one CPU core, of which an actor has four, to
decode a picture and resize it to a megapixel. Counted on meta tensors, in TFLOP a sample: a forward 6.76 for SDXL and 74.4 for
FLUX.1, a LoRA step 14.2 and 164, the VAE 4.88, a text 0.11 and 4.86. At 790 TFLOP/s that gives, in seconds per sample:

                           expert stage  compiled  training step  compiled  CPO sample  compiled  naive loop
    SDXL LoRA              0.118         0.108     0.040          0.033     0.158       0.141     0.5
      with --vae float16   0.103         0.093                              0.142       0.126
    FLUX.1 LoRA            0.98          0.87      0.46           0.38      1.44        1.25      1.45

Of the expert stage the five forwards are 0.078 and 0.86 (compiled 0.068 and 0.75), the VAE 0.031 and the texts 0.002 and 0.077.
The naive SDXL is bound by launches: some 3,000 kernels a forward, twice as many with an adapter beside the weights. The aims are
0.14 s for SDXL, 1.5 s for FLUX.1, and a third of the naive loop for SDXL.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from counting import Cost
from gpu_roles import Choice, Roles
from random_models import parameters_of, size_of

from cpo_ray.config.registry import FAMILIES

#: A shard, which is the expert's batch, has as many samples as keep parameters times samples below this: 8 for SDXL and 2 for
#: FLUX.1. A micro-batch of the trained model has half of them.
PARAMETERS_TIMES_SAMPLES, MOST_SAMPLES = 24e9, 8
#: Bytes of each parameter that is trained: weights, gradients, and float32 copies with theirs and two moments.
BYTES = 20
#: Dense bfloat16 by the data sheet, TFLOP/s, which model FLOP utilisation (MFU) refers to.
DATA_SHEET = {"NVIDIA H200": 989.5, "NVIDIA H100 80GB HBM3": 989.5, "NVIDIA A100-SXM4-80GB": 312.0}
SHARES = {"forward": 0.55, "compiled forward": 0.65, "step": 0.45, "compiled step": 0.55, "text": 0.4}
VAE_SHARES = {"float32": 0.2, "float16": 0.4}
SECONDS_PER_KERNEL, SECONDS_PER_MEGAPIXEL = 10e-6, 0.030
#: What the shipped configurations give an actor.
CPUS = 4


@dataclass
class Case:
    """One thing to time: a call, the samples in it, the operations of one of them, the predicted time of one, what came out."""

    call: Callable[[], object]
    samples: int
    teraflop: float
    predicted: float
    compiled: bool = False
    seconds: list[float] = field(default_factory=list)
    gigabytes: float = 0.0
    failure: str = ""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, and return what is written."""
    options = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile is None:
        options.compile = device.type == "cuda"
    torch.set_num_threads(CPUS if device.type == "cuda" else 1)
    record = _record(options, device)
    print(record["what"], flush=True)
    for name in FAMILIES.names if options.family == "all" else (options.family,):
        title = f"{name} {options.parameters}"
        needed = parameters_of(name, size_of(name, options.size)) * BYTES / 1e9 if options.parameters == "full" else 0.0
        if needed > (record["hardware"]["gigabytes"] or math.inf):
            record["families"][title] = {"failed": f"{needed:.0f} GB of weights, gradients and copies do not fit"}
            print(title, record["families"][title]["failed"])
            continue
        with tempfile.TemporaryDirectory() as folder:
            record["families"][title] = {}
            _measure(name, options, Path(folder), device, record, record["families"][title])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return record


def _measure(
    name: str, options: argparse.Namespace, folder: Path, device: torch.device, record: dict[str, Any], result: dict[str, Any]
) -> None:
    size = size_of(name, options.size)
    shard = options.batch or max(1, min(MOST_SAMPLES, int(PARAMETERS_TIMES_SAMPLES / parameters_of(name, size))))
    micro = min(options.micro_batch or max(1, shard // 2), shard)
    choice = Choice(shard, micro, options.parameters, options.compile, options.vae == "float16")
    roles = Roles(name, size, folder, device, choice)
    with _eager(options.compile):
        costs = roles.costs()
    cases = _cases(roles, costs, record["matrix_teraflop_per_second"], options)
    result |= {"shard": roles.batch, "micro_batch": roles.micro_batch}
    result["counted_per_sample"] = {part: asdict(cost) for part, cost in costs.items()}
    for number in range(options.rounds + 1):
        print(f"{name}: round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for case in cases.values():
            with _eager(options.compile and not case.compiled):
                _time(case, device, keep=number > 0)
        if number:
            result["cases"] = {label: _row(case, DATA_SHEET.get(record["hardware"]["device"])) for label, case in cases.items()}
            result["ratios"] = _ratios(result["cases"])
            if options.output:
                options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(_table(f"{name} {options.parameters}", result), flush=True)


def _cases(roles: Roles, costs: dict[str, Cost], rate: float, options: argparse.Namespace) -> dict[str, Case]:
    """All cases, with predictions at a matrix rate in TFLOP/s."""
    batch, micro, flop = roles.batch, roles.micro_batch, {part: cost.teraflop for part, cost in costs.items()}

    def seconds(part: str, share: float, together: int) -> float:
        """Return the seconds of one sample, when `together` samples are computed at once."""
        return max(flop[part] / (share * rate), costs[part].kernels * SECONDS_PER_KERNEL / together)

    def texts(together: int) -> float:
        return 5 * seconds("text", SHARES["text"], together)

    def vae(together: int) -> float:
        return seconds("VAE", VAE_SHARES[options.vae], together)

    pictures = SECONDS_PER_MEGAPIXEL * roles.size.pixels**2 / 2**20
    at_once = min(batch, torch.get_num_threads())
    around, around_flop = pictures / at_once + vae(batch) + texts(5 * batch), flop["VAE"] + 5 * flop["text"]
    reference, stage_flop = seconds("forward", SHARES["forward"], batch), around_flop + 5 * flop["forward"]
    cases = {}
    for kind in ("", "compiled ") if options.compile else ("",):
        stage = around + reference + 4 * seconds("forward", SHARES[f"{kind}forward"], 4 * batch)
        step = seconds("step", SHARES[f"{kind}step"], micro)
        compiled = bool(kind)
        cases[f"{kind}expert stage"] = Case(roles.expert_stage, batch, stage_flop, stage, compiled)
        cases[f"{kind}training step"] = Case(roles.training_step, batch, flop["step"], step, compiled)
        cases[f"{kind}CPO sample"] = Case(roles.cpo_sample, batch, stage_flop + flop["step"], stage + step, compiled)
    naive = pictures + vae(1) + texts(1) + seconds("forward", SHARES["forward"], 1) + seconds("step", SHARES["step"], 1)
    naive += 4 * seconds("live forward", SHARES["forward"], 1)
    naive_flop = around_flop + flop["forward"] + 4 * flop["live forward"] + flop["step"]
    cases["naive loop"] = Case(roles.naive_loop, batch, naive_flop, naive)
    stacked, prompts = torch.cat([roles.picture(image)[0] for image in roles.images]), ["a red circle"] * (5 * batch)
    cases["pictures alone"] = Case(lambda: [roles.picture(image) for image in roles.images], batch, 0.0, pictures)
    cases["VAE alone"] = Case(lambda: roles.encoders.encode_pictures(stacked), batch, flop["VAE"], vae(batch))
    cases["texts alone"] = Case(lambda: roles.encoders.encode_prompts(prompts), batch, 5 * flop["text"], texts(5 * batch))
    return cases


def _eager(forbid: bool) -> AbstractContextManager[object]:
    """Compiled blocks run as they are written while this holds."""
    return torch.compiler.set_stance("force_eager") if forbid else nullcontext()


def _time(case: Case, device: torch.device, keep: bool) -> None:
    """One call. The first of each, which compiles and asks for memory, is not kept."""
    if case.failure:
        return
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
            case.gigabytes = (torch.cuda.max_memory_allocated() - before) / 1e9
        else:
            started = time.process_time()
            case.call()
            seconds = time.process_time() - started
        if keep:
            case.seconds.append(seconds / case.samples)
    except torch.OutOfMemoryError as error:
        case.failure = str(error).partition(". ")[0]


def _row(case: Case, peak: float | None) -> dict[str, Any]:
    if case.failure:
        return {"predicted": case.predicted, "failed": case.failure}
    seconds = median(case.seconds)
    return {
        "predicted": case.predicted,
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
    """The naive loop over everything that does a whole sample or a step."""
    seconds = {name: row["seconds_per_sample"] for name, row in rows.items() if "failed" not in row}
    naive = seconds.get("naive loop", math.nan)
    return {f"naive loop / {name}": naive / s for name, s in seconds.items() if name.endswith(("CPO sample", "training step"))}


def _table(title: str, result: dict[str, Any]) -> str:
    lines = [f"{title:<24}{'predicted':>10}{'measured':>10}{'ratio':>7}{'TFLOP/s':>9}{'MFU':>6}{'GB':>7}   (seconds per sample)"]
    for name, row in result["cases"].items():
        if "failed" in row:
            lines.append(f"{name:<24}{row['predicted']:>10.4f}  {row['failed']}")
            continue
        numbers = row["seconds_per_sample"], row["measured / predicted"], row["teraflop_per_second"]
        mfu, gigabytes = ("" if value is None else f"{value:.2f}" for value in (row["mfu"], row["gigabytes_beside_weights"]))
        lines.append(
            f"{name:<24}{row['predicted']:>10.4f}{numbers[0]:>10.4f}{numbers[1]:>7.2f}{numbers[2]:>9.3g}{mfu:>6}{gigabytes:>7}"
        )
    return "\n".join([*lines, *(f"{name}: {ratio:.2f}" for name, ratio in result["ratios"].items())])


def _record(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return what is known before a model is measured, and what an earlier run of the same kind wrote into the file."""
    gpu = device.type == "cuda"
    complete = gpu and options.size == "full"
    place = "one GPU" if gpu else "one CPU thread, CPU time"
    note = "models at their published size" if complete else "THE FIGURES OF THE REAL MODELS ON A GPU ARE MISSING"
    record: dict[str, Any] = {
        "what": f"{place}, {options.size} configurations: {note}",
        "gpu_figures": "present" if complete else "missing",
        "commit": options.commit or _commit(),
        "hardware": {
            "device": torch.cuda.get_device_name() if gpu else platform.machine(),
            "gigabytes": torch.cuda.mem_get_info()[1] / 1e9 if gpu else None,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
    families: dict[str, Any] = {}
    if options.output and options.output.exists():
        earlier = json.loads(options.output.read_text())
        families = earlier["families"] if all(earlier[key] == value for key, value in record.items()) else {}
    record["settings"] = {key: value for key, value in vars(options).items() if key not in ("output", "commit")}
    return record | {"matrix_teraflop_per_second": _matrix_rate(device), "families": families}


def _matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a large matrix product on random data, in the dtype of the models: what shares refer to."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    case = Case(lambda: left @ right, 1, 2 * size**3 / 1e12, 0.0)
    for number in range(13):
        _time(case, device, keep=number > 2)
    return case.teraflop / median(case.seconds)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=[*FAMILIES.names, "all"], default="all")
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--parameters", choices=["lora", "full"], default="lora")
    parser.add_argument("--batch", type=int, help="samples per shard, the expert's batch; by the model's size without it")
    parser.add_argument("--micro-batch", type=int, help="samples per forward of the trained model; half a shard without it")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="also time compiled blocks; on GPUs by default")
    parser.add_argument("--vae", choices=["float32", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commit", help="what this is a copy of, where there is no git")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
