"""Manage the target store: list its shards, verify their checksums, prune unused ones, size up what a run will need.

Safe to run beside a training. `verify` and `prune` look at the whole store in targets.folder, `size` at this configuration.
"""

from __future__ import annotations

from argparse import Namespace

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def targets(config: Config, arguments: Namespace) -> None:
    from cpo_ray.targets import maintenance as target_tool

    folder = config.targets.folder
    if arguments.action == "list":
        target_tool.show(folder)
    elif arguments.action == "verify":
        target_tool.show_verification(folder)
    elif arguments.action == "prune":
        target_tool.show_pruning(folder, arguments.unused_days, delete=arguments.delete)
    else:
        target_tool.show_needs(config)


if __name__ == "__main__":
    line = parser(str(__doc__), actions=("list", "verify", "prune", "size"))
    line.add_argument(
        "--unused-days", type=float, default=30.0, metavar="N", help="prune: shards unused for N days (default: 30)"
    )
    line.add_argument("--delete", action="store_true", help="prune: delete the shards; without it they are only listed")
    raise SystemExit(run(line, targets))
