"""The driver's side of Ray: connecting, refusing what cannot be placed, and telling how far things are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import ray

from cpo_ray.checks import unsafe_flags
from cpo_ray.config import Config, ConfigError


def connect() -> None:
    """Join the cluster that RAY_ADDRESS (or `ray job submit`) names; without one, start a Ray of this machine's own.

    Raises ConfigError when a Ray flag is set that lets data execute code.
    """
    if flags := unsafe_flags(os.environ):
        raise ConfigError(f"{', '.join(flags)} lets Ray Data run code that it reads from files; unset it")
    if not ray.is_initialized():
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        ray.init(address=address, include_dashboard=False, log_to_driver=bool(os.environ.get("CPO_RAY_WORKER_LOGS")))


def require_resources(config: Config) -> None:
    """Refuse a configuration whose workers and expert actors cannot run at the same time.

    Raises ConfigError with what is needed and what the cluster has; Ray itself would wait for ever without a word.
    """
    has = ray.cluster_resources()
    targets = config.targets
    for name, training in (("expert", config.expert.optimization), ("preference", config.preference.optimization)):
        for resource, worker, actor in (
            ("CPU", training.cpus_per_worker, targets.cpus_per_actor),
            ("GPU", training.gpus_per_worker, targets.gpus_per_actor),
        ):
            needed = training.workers * worker + (targets.min_actors * actor if targets.overlap else 0.0)
            if needed > has.get(resource, 0.0) + 1e-9:
                raise ConfigError(
                    f"{name}.optimization.workers = {training.workers} with {targets.min_actors} expert actors need {needed:g} "
                    f"{resource}, and the cluster has {has.get(resource, 0.0):g}; "
                    f"lower {name}.optimization.workers or the share of each, set targets.overlap=false, or add nodes"
                )


def progress(label: str) -> Callable[[int, int], None]:
    """Reports `done of total`: one line that is rewritten in a terminal, a plain line at every tenth elsewhere."""
    started, last = time.monotonic(), -1

    def report(done: int, total: int) -> None:
        nonlocal last
        left = (time.monotonic() - started) / max(done, 1) * (total - done)
        line = f"{label}: {done} of {total}, about {left:.0f} s left" if done < total else f"{label}: {total} of {total}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif (tenth := done * 10 // total) != last:
            last = tenth
            print(line, file=sys.stderr, flush=True)

    return report
