"""Compute the targets of stage 2 ahead of training. Existing shards are kept."""

from __future__ import annotations

from argparse import Namespace

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def precompute_targets(config: Config, arguments: Namespace) -> None:
    from cpo_ray import pipeline

    pipeline.precompute_targets(config)


if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__)), precompute_targets))
