"""Search settings of stage 2: many trials on one expert and one set of targets."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from cpo_ray.command_line import CONFIGS, parser, run
from cpo_ray.config import Config

if TYPE_CHECKING:
    from cpo_ray.preflight.findings import Finding


def search(config: Config, arguments: Namespace) -> None:
    from cpo_ray.sweep.search import search

    search(config, resume=arguments.resume)


def check(config: Config) -> list[Finding]:
    from cpo_ray.sweep.search import findings

    return findings(config)


if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__), resumable=True, config=CONFIGS / "toy_sweep.toml"), search, check))
