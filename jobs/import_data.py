"""Import a folder of your own pictures into annotated shards in data.folder."""

from pathlib import Path

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    line = parser(str(__doc__))
    line.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="folder with pictures, and with metadata or caption files"
    )
    raise SystemExit(run(line, "cpo_ray.pipeline:import_data"))
