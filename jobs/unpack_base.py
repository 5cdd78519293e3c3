"""Unpack a base in a single .safetensors file into a folder as diffusers saves it: model.base names the file."""

from pathlib import Path

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    line = parser(str(__doc__), checkable=False)
    line.add_argument("--folder", type=Path, required=True, help="where to; a new folder")
    raise SystemExit(run(line, "cpo_ray.models.bases.single_file:unpack"))
