"""Run stage 1 alone: train the expert, which is told a picture's attributes, and measure whether it obeys them."""

from __future__ import annotations

from argparse import Namespace

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def train_sft(config: Config, arguments: Namespace) -> None:
    from cpo_ray import pipeline

    pipeline.train_sft(config, resume=arguments.resume)


if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__), resumable=True), train_sft))
