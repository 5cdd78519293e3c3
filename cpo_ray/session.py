"""The driver's side of Ray: connect, and release what was reserved."""

from __future__ import annotations

import logging
import os
import time

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cpo_ray.config import ConfigError
from cpo_ray.preflight.checks import unsafe_flags


def connect() -> None:
    """Join the cluster that RAY_ADDRESS (or `ray job submit`) names, or start a Ray on this machine.

    Raises ConfigError if a Ray flag is set that lets data execute code.
    """
    if flags := unsafe_flags(os.environ):
        raise ConfigError(f"{', '.join(flags)} lets Ray Data run code that it reads from files; unset it")
    # Our progress lines say everything that Ray's own log of each execution says.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        if address == "local":
            # A process per training that watches for machines which are about to be taken away: here there is only this one.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def release_reserved(seconds: float = 10.0) -> int:
    """Release what killed trainings of this job have reserved, and return their number. Call it when no training is running.

    Ray Train has a process for this, but it learns about the reservation only when the workers run. Without this call a training
    that is killed while it starts would hold its CPUs and GPUs until the job ends, and the next training would wait for them.
    """
    ended, removed, quiet = time.monotonic() + seconds, 0, 0
    while quiet < 2 and time.monotonic() < ended:  # a process that is being killed may still reserve more
        left = [
            identity
            for identity, group in placement_group_table().items()
            # An identity ends with the id of its job.
            if group["state"] != "REMOVED" and identity.endswith(ray.get_runtime_context().get_job_id())
        ]
        for identity in left:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))
        removed, quiet = removed + len(left), 0 if left else quiet + 1
        time.sleep(0.5)
    return removed
