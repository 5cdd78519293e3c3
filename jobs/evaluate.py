"""Evaluate a finished run: draw its models from the same prompts and noise, measure the pictures, write the report."""

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__)), "cpo_ray.pipeline:evaluate"))
