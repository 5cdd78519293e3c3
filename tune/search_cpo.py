"""Search settings of stage 2: many trials on one expert and one set of targets."""

from cpo_ray.command_line import CONFIGS, parser, run

if __name__ == "__main__":
    line = parser(str(__doc__), resumable=True, config=CONFIGS / "toy_sweep.toml")
    raise SystemExit(run(line, "cpo_ray.sweep.search:search", "cpo_ray.sweep.search:findings"))
