"""Evaluate a finished run: draw its models from the same prompts and noise, measure the pictures, write the report."""

from cpo_ray.command_line import parser, run

if __name__ == "__main__":
    line = parser(str(__doc__))
    line.add_argument(
        "--scorers",
        choices=["list"],
        help="say what each scorer measures, its licence and where its weights are looked for, and stop",
    )
    line.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="FIGURE",
        help="end with exit code 3 unless the whole 95 %% interval holds, such as 'negatives<=1.0' or 'content.change>=0'",
    )
    raise SystemExit(run(line, "cpo_ray.pipeline:evaluate"))
