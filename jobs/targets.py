"""Manage the target store: list its shards, verify their checksums, prune unused ones, size up what a run will need.

Safe to run beside a training. `verify` and `prune` look at the whole store in targets.folder, `size` at this configuration.
"""

from __future__ import annotations

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def targets(config: Config, action: str, unused_days: float, delete: bool) -> None:
    from cpo_ray.targets import maintenance

    folder = config.targets.folder
    if action == "list":
        maintenance.show(folder)
    elif action == "verify":
        maintenance.show_verification(folder)
    elif action == "prune":
        maintenance.show_pruning(folder, unused_days, delete=delete)
    else:
        size_up(config)


def size_up(config: Config) -> None:
    """Print what the configuration's run, or sweep, needs of the store and what is free."""
    from cpo_ray.preflight.disk import free_bytes, stage_needs
    from cpo_ray.sweep.items import sweep_items

    for need in stage_needs(config, None if config.sweep is None else lambda pictures: sweep_items(config, pictures)[0]):
        print(need.sentence())
    folder = config.targets.folder.absolute()
    print(f"{free_bytes(folder) / 1e9:.1f} GB are free at {folder}")


if __name__ == "__main__":
    line = parser(str(__doc__), actions=("list", "verify", "prune", "size"))
    line.add_argument(
        "--unused-days", type=float, default=30.0, metavar="N", help="prune: shards unused for N days (default: 30)"
    )
    line.add_argument("--delete", action="store_true", help="prune: delete the shards; without it they are only listed")
    raise SystemExit(run(line, targets))
