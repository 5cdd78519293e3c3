"""Import a folder of your own pictures into annotated shards in data.folder."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from cpo_ray.command_line import parser, run
from cpo_ray.config import Config


def import_data(config: Config, arguments: Namespace) -> None:
    from cpo_ray import pipeline

    pipeline.import_data(config, arguments.images)


if __name__ == "__main__":
    line = parser(str(__doc__))
    line.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="folder with pictures, and with metadata or caption files"
    )
    raise SystemExit(run(line, import_data))
