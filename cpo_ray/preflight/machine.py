"""The hardware of a run: found by looking, or stated in the configuration for a machine that is elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cpo_ray.config import Config, ConfigError, Machine
from cpo_ray.preflight.findings import Finding

#: Share of a GPU's peak rate that plans assume for training and frozen forwards.
USUAL_SHARE = 0.4


class Card(NamedTuple):
    """A kind of GPU: the gigabytes (10^9 bytes) that programs can use, and its dense bfloat16 peak in TFLOP/s."""

    gigabytes: float
    teraflop_per_second: float


#: From the makers' data sheets. Longer names come first, since a name is searched for in what a driver or Ray reports.
CARDS = {
    "RTX 4090": Card(25.4, 165),
    "RTX-4090": Card(25.4, 165),
    "A100-40G": Card(42.3, 312),
    "A100-SXM4-40GB": Card(42.3, 312),
    "A100-PCIE-40GB": Card(42.3, 312),
    "GH200": Card(101.0, 989),
    "B200": Card(191.0, 2250),
    "H200": Card(150.0, 989),
    "H100": Card(85.0, 989),
    "A100": Card(85.0, 312),
    "L40S": Card(47.6, 362),
    "A10G": Card(23.6, 125),
    "L4": Card(23.7, 121),
}


@dataclass(frozen=True)
class Resources:
    """The CPUs, GPUs and main memory that a job may take. `gpu` names the kind of GPU; None if there is none or it is unknown."""

    where: str
    cpus: float
    gpus: float
    gpu: str | None = None
    gpu_bytes: float | None = None
    main_bytes: float | None = None


def available() -> Resources:
    """Return the resources of the cluster that a job would join, or of this machine. Raises OSError if the cluster does not
    answer.
    """
    import ray

    if ray.is_initialized():
        return _cluster()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return _this_machine()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # Ray itself would wait minutes for a port without a listener
        socket.create_connection((host, int(port)), timeout=5).close()
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    found = _cluster()
    ray.shutdown()  # this only leaves the cluster, which keeps running
    return found


def _this_machine() -> Resources:
    import torch

    memory = _physical_memory()
    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    if not gpus:
        return Resources("on this machine", cpus, gpus, main_bytes=memory)
    smallest = min(map(torch.cuda.get_device_properties, range(int(gpus))), key=lambda card: card.total_memory)
    return Resources("on this machine", cpus, gpus, smallest.name, float(smallest.total_memory), memory)


def _cluster() -> Resources:
    import ray

    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU", "memory", "object_store_memory")}
    kinds = {name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")}
    smallest = min(kinds, key=lambda kind: card_of(kind, Card(0, 0)).gigabytes) if kinds else None
    # Ray counts the memory that was free when it started. On one machine the whole memory counts.
    memory = total["memory"] + total["object_store_memory"] if len(nodes) > 1 else _physical_memory()
    return Resources("in the cluster", total["CPU"], total["GPU"], smallest, None, memory)


def _physical_memory() -> float:
    """Return this machine's memory, or the limit of its container."""
    machine, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    container = limit.read_text(encoding="utf-8").strip() if limit.is_file() else ""
    return float(min(machine, int(container)) if container.isdigit() else machine)


def card_of(name: str | None, otherwise: Card) -> Card:
    """Return what is known about a kind of GPU, or None."""
    return next((card for known, card in CARDS.items() if name and known.lower() in name.lower()), otherwise)


def stated(machine: Machine, found: Resources) -> Resources:
    """Replace what was found by what the configuration states.

    Raises ConfigError for a kind of GPU that is unknown and has no stated memory.
    """
    kind = machine.gpu or found.gpu
    card = card_of(kind, Card(0, 0))
    if machine.gpu and not card.gigabytes and machine.gpu_gigabytes is None:
        raise ConfigError(
            f"machine.gpu is {machine.gpu!r}, of which nothing is known; "
            f"set machine.gpu_gigabytes, or take one of {', '.join(sorted(CARDS))}"
        )
    seen = None if machine.gpu else found.gpu_bytes
    gpu_bytes = machine.gpu_gigabytes * 1e9 if machine.gpu_gigabytes else seen or card.gigabytes * 1e9 or None
    elsewhere = machine.gpu is not None and not found.gpus  # its main memory is unknown
    return Resources(found.where, found.cpus, found.gpus, kind, gpu_bytes, None if elsewhere else found.main_bytes)


def rate(machine: Machine, resources: Resources, on_gpu: bool) -> tuple[float, str] | None:
    """Return the FLOP/s that one GPU or CPU is planned with, and the number's source; None if nothing is stated or known."""
    unit = "GPU" if on_gpu else "CPU"
    if machine.teraflop_per_second is not None:
        return machine.teraflop_per_second * 1e12, f"{machine.teraflop_per_second:g} TFLOP/s of a {unit}, as stated"
    peak = card_of(resources.gpu, Card(0, 0)).teraflop_per_second if on_gpu else 0
    if not peak:
        return None
    planned = USUAL_SHARE * peak
    return planned * 1e12, f"{planned:.0f} TFLOP/s of a GPU, {USUAL_SHARE:.0%} of the peak of {resources.gpu}"


def processor_findings(config: Config, found: Resources) -> Iterator[Finding]:
    """Compare the CPUs and GPUs that each stage takes with those that are there."""
    cpus, gpus, where = found.cpus, found.gpus, found.where
    for stage, needed_cpus, needed_gpus in _demands(config):
        have = f"{needed_cpus:g} of {cpus:g} CPUs{f' and {needed_gpus:g} of {gpus:g} GPUs' if needed_gpus else ''} {where}"
        if needed_cpus > cpus + 1e-9 or needed_gpus > gpus + 1e-9:
            yield Finding("missing", f"{stage} takes {have}; lower workers, actors or what each takes, or add machines")
        else:
            yield Finding("ok", f"{stage} takes {have}")


def _demands(config: Config) -> Iterator[tuple[str, float, float]]:
    """Yield (stage, CPUs, GPUs) of the processes that run at the same time."""
    targets, evaluation = config.targets, config.evaluation
    actors = targets.min_actors * targets.cpus_per_actor, targets.min_actors * targets.gpus_per_actor
    stages = {"stage 1": config.expert.optimization, "stage 2": config.preference.optimization}
    if config.expert.adapter is not None:
        del stages["stage 1"]
    for name, training in stages.items():
        workers = training.workers * training.cpus_per_worker, training.workers * training.gpus_per_worker
        if targets.overlap:
            yield f"{name} with its targets", workers[0] + actors[0], workers[1] + actors[1]
        else:
            yield f"the targets of {name}", *actors
            yield name, *workers
    yield "evaluation", evaluation.actors * evaluation.cpus_per_actor, evaluation.actors * evaluation.gpus_per_actor
