"""Find settings that make a process fit, by counting the memory of changed configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpo_ray.config import Config, ConfigError, override
from cpo_ray.preflight.memory import Need, Role, micro_batch

#: Settings that change together, as `section.key=value`.
Change = tuple[str, ...]


def room(need: Need, gpu_bytes: float) -> float:
    """Return how much of a GPU's memory a process may take. Processes that share a GPU share its memory, too."""
    return min(1.0, need.gpus) * gpu_bytes


def remedy(config: Config, folder: Path | None, section: str, role: Role, gpu_bytes: float) -> str:
    """Return what to change so that the role fits into its share of a GPU, as half a sentence."""
    changes: list[Change] = []
    smallest = role(config, folder)
    for change in _changes(config, section):
        need = _tried(config, folder, role, [*changes, change])
        if need is None:
            continue
        if need.bytes <= room(need, gpu_bytes):
            return f"it fits with {_joined(_needed(config, folder, role, gpu_bytes, [*changes, change]))}"
        if need.bytes < 0.99 * smallest.bytes or need.gpus > smallest.gpus:
            smallest = need
            changes.append(change)
    what = f"with {_joined(changes)} it still takes {smallest.bytes / 1e9:.1f} GB" if changes else "no setting makes it smaller"
    return f"{what}; take a GPU of more memory or a lower model.resolution"


def _needed(config: Config, folder: Path | None, role: Role, gpu_bytes: float, changes: list[Change]) -> list[Change]:
    """Drop the changes that turned out to be unnecessary after the last one."""
    for change in changes[:-1]:
        fewer = [other for other in changes if other != change]
        need = _tried(config, folder, role, fewer)
        if need is not None and need.bytes <= room(need, gpu_bytes):
            changes = fewer
    return changes


def _tried(config: Config, folder: Path | None, role: Role, changes: Sequence[Change]) -> Need | None:
    """Return the need after the changes; None if these settings exclude each other."""
    try:
        changed = override(config, [text for change in changes for text in change])
    except ConfigError:
        return None
    return role(changed, folder)


def _changes(config: Config, section: str) -> Iterator[Change]:
    """Yield changes that save memory, the cheapest first. The last ones change what is trained."""
    settings: Any = config
    for name in section.split("."):
        settings = getattr(settings, name)
    per = "gpus_per_worker" if hasattr(settings, "gpus_per_worker") else "gpus_per_actor"
    if 0 < getattr(settings, per) < 1:
        yield (f"{section}.{per}=1",)
    if section == "targets":
        if not settings.offload_text_encoders:
            yield ("targets.offload_text_encoders=true",)
        yield from ((f"targets.forward_batch={size}",) for size in _halves(settings.forward_batch or 4 * settings.shard_size))
        yield from ((f"targets.shard_size={size}",) for size in _halves(settings.shard_size))
    elif section == "evaluation":
        yield from ((f"{section}.batch={size}",) for size in _halves(settings.batch))
    else:
        yield from _for_training(section, settings, micro_batch(config, settings))
    if config.model.dtype == "float32":
        yield ("model.dtype=bfloat16",)


def _for_training(section: str, settings: Any, together: int) -> Iterator[Change]:
    yield from ((f"{section}.micro_batch={size}",) for size in _halves(together))
    if not settings.gradient_checkpointing:
        yield (f"{section}.gradient_checkpointing=true",)
    cut = (
        () if settings.optimizer == "adamw" else (f"{section}.optimizer=adamw",)
    )  # ZeRO cannot shard the state of other optimizers
    if settings.parameters == "full":  # the optimizer of an adapter is small anyway
        yield (*cut, f"{section}.zero_stage={max(2, settings.zero_stage)}", f"{section}.offload_optimizer=true")
    for workers in (2, 4, 8):
        if workers >= settings.workers:
            yield (*cut, f"{section}.zero_stage=3", f"{section}.workers={workers}")
    if settings.parameters == "full":
        yield (f"{section}.parameters=lora",)


def _halves(size: int) -> Iterator[int]:
    while size > 1:
        size //= 2
        yield size


def _joined(changes: Sequence[Change]) -> str:
    """Join changes as overrides. Of several values for a key only the last one counts."""
    latest = {text.partition("=")[0]: text for change in changes for text in change}
    return " and ".join(latest.values())
