"""Pictures and a hierarchy → annotated shards: a back end is asked about every picture, one root of the hierarchy at a time.

A run that was stopped goes on when the same command is given again; what was answered is never asked twice.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

from cpo_ray.command_line import CONFIGS, parser, run_as
from cpo_ray.config.annotation import AnnotationConfig


def annotate(config: AnnotationConfig, arguments: Namespace) -> None:
    from cpo_ray.annotation import run
    from cpo_ray.core.progress import ProgressLine
    from cpo_ray.session import connect

    connect()
    line = ProgressLine("annotate")
    tell = line.counter("pictures")

    def on_progress(report: run.Report) -> None:
        line.note = report.note
        tell(report.done, report.pictures)

    report = run.annotate(
        config,
        limit=arguments.limit,
        dry_run=arguments.dry_run,
        retry_failed=arguments.retry_failed,
        on_progress=None if arguments.dry_run else on_progress,
    )
    print(report.summary())


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no number of pictures; give 1 or more")
    return int(text)


if __name__ == "__main__":
    line = parser(str(__doc__), checkable=False, config=CONFIGS / "annotate_toy.toml")
    line.add_argument("--limit", type=positive, metavar="N", help="the first N pictures only")
    line.add_argument("--dry-run", action="store_true", help="say how many questions and tokens it would take, and stop")
    line.add_argument("--retry-failed", action="store_true", help="ask again what could not be answered before")
    raise SystemExit(run_as(AnnotationConfig, line, annotate))
