"""Run the whole method: expert (stage 1), targets, CPO (stage 2), evaluation and report."""

from __future__ import annotations

from argparse import Namespace

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def train_cpo(config: Config, arguments: Namespace) -> None:
    from cpo_ray import pipeline

    pipeline.train_cpo(config, resume=arguments.resume)


if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__), resumable=True), train_cpo))
