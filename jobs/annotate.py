"""Label pictures: ask a back end about every picture, one root of the hierarchy at a time, and write annotated shards.

The same command resumes a stopped run. No answered question is asked again.
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
    tell = line.counter("pictures", config.annotation.actors * run.BLOCKS_PER_ACTOR * run.BLOCK)

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
        raise ArgumentTypeError(f"{text!r} is not a number of pictures; give 1 or more")
    return int(text)


if __name__ == "__main__":
    line = parser(str(__doc__), checkable=False, config=CONFIGS / "annotate_toy.toml")
    line.add_argument("--limit", type=positive, metavar="N", help="annotate only the first N pictures")
    line.add_argument("--dry-run", action="store_true", help="print how many questions and tokens a run would take, and stop")
    line.add_argument("--retry-failed", action="store_true", help="ask the questions again that failed before")
    raise SystemExit(run_as(AnnotationConfig, line, annotate))
