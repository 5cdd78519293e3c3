"""The driver's side of Ray: connecting, and giving back what was reserved."""

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
    """Join the cluster that RAY_ADDRESS (or `ray job submit`) names; without one, start a Ray of this machine's own.

    Raises ConfigError when a Ray flag is set that lets data execute code.
    """
    if flags := unsafe_flags(os.environ):
        raise ConfigError(f"{', '.join(flags)} lets Ray Data run code that it reads from files; unset it")
    # Ray's own account of each execution says nothing that our progress lines do not.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def release_reserved(seconds: float = 10.0) -> int:
    """Give back what trainings of this job have reserved that were killed; returns how many there were.

    To be called when none is running. Ray Train has a process that does so, and tells it only once the workers run: a training
    that is killed while it starts would hold its CPUs and GPUs as long as the job lasts, and the next one would wait for them.
    """
    ended, removed, quiet = time.monotonic() + seconds, 0, 0
    while quiet < 2 and time.monotonic() < ended:  # what is being killed may just have asked for more
        left = [
            identity
            for identity, group in placement_group_table().items()
            # The end of an identity is its job's.
            if group["state"] != "REMOVED" and identity.endswith(ray.get_runtime_context().get_job_id())
        ]
        for identity in left:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))
        removed, quiet = removed + len(left), 0 if left else quiet + 1
        time.sleep(0.5)
    return removed
