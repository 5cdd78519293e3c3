"""Compute the targets of stage 2 ahead of training. Existing shards are kept."""

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__)), "cpo_ray.pipeline:precompute_targets"))
