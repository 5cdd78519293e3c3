"""Run the whole method: expert (stage 1), targets, CPO (stage 2), evaluation and report."""

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__), resumable=True), "cpo_ray.pipeline:train_cpo"))
