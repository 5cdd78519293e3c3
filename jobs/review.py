"""Serve a page on which an expert confirms or rejects the labels of annotated shards; with --report, summarise the judgements.

Every judgement is on disk as soon as the page shows it. The same command resumes a stopped review.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path

from cpo_ray.command_line import CONFIGS, parser, run
from cpo_ray.config.review import ReviewConfig, is_loopback


def review(config: ReviewConfig, reviewer: str, sample: int | None, report: bool, against: Path | None) -> None:
    settings = config.review
    if report or against:
        from cpo_ray.review.report import report as write_report

        print(write_report(settings, against))
        return
    from cpo_ray.review.pile import open_pile
    from cpo_ray.review.server import serve

    pile = open_pile(settings, reviewer, sample)
    print(pile.sentence())
    if not is_loopback(settings.host):
        print("Others on the network can read what is sent; a tunnel to 127.0.0.1, such as ssh -L, is safer.")
    print("Open this address in a browser; Ctrl+C ends the review:")
    serve(pile, settings.host, settings.port)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a number of pictures; give 1 or more")
    return int(text)


if __name__ == "__main__":
    line = parser(str(__doc__), checkable=False, config=CONFIGS / "review_toy.toml")
    name = os.environ.get("USER") or "expert"
    line.add_argument(
        "--reviewer",
        default=name,
        metavar="NAME",
        help=f"name of the reviewer; reviewers do not see each other's judgements (default: {name})",
    )
    line.add_argument(
        "--sample", type=positive, metavar="N", help="review N pictures, the same for every reviewer (default: all)"
    )
    line.add_argument("--report", action="store_true", help="write report.html beside the judgements and print its table")
    line.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="write the report and compare with the shards of another back end, made from the same pictures",
    )
    raise SystemExit(run(line, review, schema=ReviewConfig))
