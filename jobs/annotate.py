"""Label pictures: ask a back end about every picture, one root of the hierarchy at a time, and write annotated shards.

The same command resumes a stopped run. No answered question is asked again.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

from cpo_ray.command_line import CONFIGS, parser, run
from cpo_ray.config.annotation import AnnotationConfig

if TYPE_CHECKING:
    from cpo_ray.annotation.report import AnnotationReport


def annotate(config: AnnotationConfig, limit: int | None, dry_run: bool, retry_failed: bool) -> None:
    from cpo_ray.annotation import run as annotation
    from cpo_ray.core.progress import ProgressLine
    from cpo_ray.session import connect

    connect()
    line = ProgressLine("annotate")
    tell = line.counter("pictures", config.annotation.actors * annotation.BLOCKS_PER_ACTOR * annotation.BLOCK)

    def on_progress(report: AnnotationReport) -> None:
        line.note = report.note
        tell(report.done, report.pictures)

    listener = None if dry_run else on_progress
    report = annotation.annotate(config, limit=limit, dry_run=dry_run, retry_failed=retry_failed, on_progress=listener)
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
    raise SystemExit(run(line, annotate, schema=AnnotationConfig))
