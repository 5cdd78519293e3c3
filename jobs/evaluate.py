"""Evaluate a finished run: draw its models from the same prompts and noise, measure the pictures, write the report."""

from __future__ import annotations

from argparse import Namespace

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def evaluate(config: Config, arguments: Namespace) -> None:
    from cpo_ray import pipeline

    pipeline.evaluate(config)


if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__)), evaluate))
