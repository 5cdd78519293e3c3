"""Run stage 1 alone: train the expert, which is told a picture's attributes, and measure whether it obeys them."""

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    raise SystemExit(run(parser(str(__doc__), resumable=True), "cpo_ray.pipeline:train_sft"))
