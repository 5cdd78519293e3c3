"""The driver's side of Ray: connect, and release what was reserved."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import ray
from ray import PlacementGroupID
from ray._private import ray_constants
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
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start()


def _start() -> None:
    """Start a Ray that only this machine reaches and only this user can look into."""
    # A process per training that watches for machines which are about to be taken away: here there is only this one.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray's own switch for a machine that is no cluster: all its ports listen on loopback. It is read where Ray is imported, which
    # happened already here, and happens in Ray's processes.
    if os.environ.setdefault(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0") == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with suppress(OSError, RuntimeError):  # no home folder, or one that cannot be written: then there is no token in it
        _closed(Path.home() / ".ray")
    folder = own_folder() / "ray"
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(folder))


def own_folder() -> Path:
    """Return a folder that only this user enters, for Ray's sockets, logs and objects. Ray opens its own folder to everybody.

    It lies in RAY_TMPDIR, or where temporary files lie. Raises ConfigError if it is somebody else's.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"cpo-ray-{os.getuid()}"
    try:
        _closed(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be a folder for Ray ({error.strerror}); set RAY_TMPDIR to a folder of yours"
        ) from None
    return folder


def _closed(folder: Path) -> None:
    """Make a folder, or take this user's, and close it to all others. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()  # a link could lead to a folder that others see
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(1, "it belongs to somebody else, or is a link")
    folder.chmod(0o700)


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
