"""The report of a review: tables for the terminal, and one HTML file with its own style, charts and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from cpo_ray.config.review import ReviewSettings
from cpo_ray.core.files import read_json, write_text
from cpo_ray.core.statistics import format_interval
from cpo_ray.data.picture import PictureError, decode
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.reports import charts, page
from cpo_ray.review import findings
from cpo_ray.review.charts import heat_map
from cpo_ray.review.findings import Likeness, Rejected, Trust
from cpo_ray.review.judgements import ReviewError, Verdicts, read_judgements

THUMBNAIL = 104
#: Pictures per rejected label, and rejected labels with pictures; all others are named.
PICTURES = 6
ILLUSTRATED = 12
CHUNK = 32


@dataclass(frozen=True)
class Reviewed:
    """Everything that a report is made from."""

    dataset: AnnotatedDataset
    tree: Hierarchy
    reviews: Mapping[str, Verdicts]
    trust: Sequence[Trust]
    against: Path | None
    common: int
    likeness: Sequence[Likeness]


def report(settings: ReviewSettings, against: Path | None) -> str:
    """Write report.html beside the judgements and return its tables for a terminal.

    `against` is a folder of shards that another back end made from the same pictures. Raises ReviewError if there is nothing to
    report or the judgements belong to other annotations; also DataError and HierarchyError.
    """
    tree, dataset = load_hierarchy(settings.hierarchy), AnnotatedDataset.open(settings.annotations)
    dataset.check_hierarchy(tree)
    files = sorted(settings.judgements.glob("*.jsonl"))
    reviews = {file.stem: read_judgements(file, dataset, tree) for file in files}
    reviews = {name: verdicts for name, verdicts in reviews.items() if verdicts}
    if not reviews and against is None:
        raise ReviewError(f"there are no judgements in {settings.judgements}; review pictures first, without --report")
    common, likeness = 0, list[Likeness]()
    if against is not None:
        other = AnnotatedDataset.open(against)
        other.check_hierarchy(tree)
        common, likeness = findings.likeness_by_root(dataset, other, tree)
    trust = findings.trust_by_root(reviews.values(), tree) if reviews else []
    reviewed = Reviewed(dataset, tree, reviews, trust, against, common, likeness)
    path = settings.judgements / "report.html"
    write_text(path, render(reviewed))
    return f"{summary(reviewed)}\n\n{path}"


def summary(reviewed: Reviewed) -> str:
    """Return the tables of trust and of two back ends as aligned text."""
    tables = []
    if reviewed.trust:
        head = ("root", "confirmed", "rejected", "unsure", "accuracy [95 %]", "agreement", "alpha [95 %]")
        rows = [
            (t.name, *map(str, t.votes), _interval(t.accuracy), "–" if t.raw is None else f"{t.raw:.2f}", _interval(t.alpha))
            for t in reviewed.trust
        ]
        progress = f"{_pictures(reviewed)} of {len(reviewed.dataset.ids)} pictures reviewed by {', '.join(reviewed.reviews)}"
        tables.append(f"{progress}\n\n{_table(head, rows)}")
    if reviewed.likeness:
        alike = [(one.name, _interval(one.overlap), _interval(one.kappa)) for one in reviewed.likeness]
        likeness = _table(("root", "overlap [95 %]", "kappa [95 %]"), alike)
        tables.append(f"the same {reviewed.common} pictures in {reviewed.against}\n\n{likeness}")
    return "\n\n".join(tables)


def render(reviewed: Reviewed) -> str:
    """Return the report as HTML."""
    filters = {"phrase": reviewed.tree.phrase, "sign": _sign}
    rejected = findings.rejected_labels(reviewed.reviews.values())
    own = {name: findings.by_picture(findings.votes_of([verdicts])) for name, verdicts in reviewed.reviews.items()}
    together = findings.cooccurrence(reviewed.dataset, reviewed.tree)
    heat = None
    if together is not None:
        blank = [[a[1:] == b[1:] for b in together.labels] for a in together.labels]
        names = [f"{_sign(signed)} {reviewed.tree.phrase(signed)}" for signed in together.labels]
        words = "Correlation of the most frequent labels over pictures; the table beside it names the strongest pairs"
        heat = heat_map(names, np.where(blank, np.nan, together.phi), words)
    counts = findings.frequencies(reviewed.dataset)
    return page.render(
        Path(__file__).with_name("report.html"),
        filters,
        reviewed=reviewed,
        pictures=_pictures(reviewed),
        marks=_marks([t.accuracy for t in reviewed.trust]),
        reviewers=[findings.trust(name, votes) for name, votes in own.items()] if len(own) > 1 else [],
        rejected=_illustrated(reviewed.dataset, rejected),
        counts=counts,
        bars=_bars(reviewed, counts),
        together=together,
        heat=heat,
        overlaps=_marks([one.overlap for one in reviewed.likeness]),
        facts=_facts(reviewed),
        illustrated=ILLUSTRATED,
        thumbnail=THUMBNAIL,
    )


def _pictures(reviewed: Reviewed) -> int:
    """Count the pictures with at least one judged label."""
    return len(findings.votes_of(reviewed.reviews.values()))


def _marks(intervals: Sequence[Any]) -> list[Markup]:
    """Draw a dot with its interval for each row, and a dashed line at the value of the last row, which covers all labels."""
    known = [interval for interval in intervals if interval is not None]
    if not known or intervals[-1] is None:
        return [Markup("")] * len(intervals)
    low, reference = min(interval.low for interval in known), intervals[-1].mean
    return [Markup("") if i is None else charts.interval_mark(i, low, 1.0, reference) for i in intervals]


def _bars(reviewed: Reviewed, counts: Mapping[str, int]) -> Markup:
    pictures = len(reviewed.dataset.ids)
    signs = {"positive": "+", "negative": "-"}
    groups = {
        root.label: {side: sum(counts[sign + a.id] for a in root.walk()) / pictures for side, sign in signs.items()}
        for root in reviewed.tree.roots
    }
    words = "Mean number of positive and negative labels of a picture below each root; the table below has every label"
    return charts.bar_chart(groups, {"positive": "--good", "negative": "--bad"}, words)


def _illustrated(dataset: AnnotatedDataset, rejected: Sequence[Rejected]) -> list[dict[str, Any]]:
    """Return each rejected label with the pictures shown for it (id, votes, image) and the ids of the others."""
    thumbnails = _thumbnails(dataset, rejected)
    found = []
    for place, label in enumerate(rejected):
        first = list(label.pictures)[: PICTURES if place < ILLUSTRATED else 0]
        shown = {sample: (label.pictures[sample], thumbnails[sample]) for sample in first if sample in thumbnails}
        others = [sample for sample in label.pictures if sample not in shown]
        found.append({"label": label, "shown": shown, "others": others})
    return found


def _thumbnails(dataset: AnnotatedDataset, rejected: Sequence[Rejected]) -> dict[str, str]:
    """Return a small inline image for each picture of the first rejected labels. Pictures that cannot be decoded are left out."""
    wanted = [sample for label in rejected[:ILLUSTRATED] for sample in list(label.pictures)[:PICTURES]]
    samples = sorted(set(wanted), key={sample: place for place, sample in enumerate(dataset.ids)}.__getitem__)
    found = {}
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        for sample, data in zip(chunk, dataset.images(chunk), strict=True):
            try:
                picture = decode(data)
            except PictureError:
                continue
            if max(picture.size) < THUMBNAIL:
                picture = picture.resize([side * 2 for side in picture.size], Image.Resampling.NEAREST)
            picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            picture.save(stream, "WEBP", quality=80)
            found[sample] = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
    return found


def _facts(reviewed: Reviewed) -> dict[str, str]:
    tree = reviewed.tree
    facts = {"annotations": str(reviewed.dataset.folder)} | _made_by(reviewed.dataset.folder, "labelled by")
    if reviewed.against is not None:
        facts |= {"compared with": str(reviewed.against)} | _made_by(reviewed.against, "labelled there by")
    return facts | {"hierarchy": f"{tree.name} {tree.version}, {tree.content_hash}"}


def _made_by(folder: Path, name: str) -> dict[str, str]:
    """Return the back end that jobs/annotate.py noted; an empty dict for shards from elsewhere."""
    try:
        about = read_json(folder / "annotation.json")
    except FileNotFoundError:
        return {}
    return {name: f"{about['model']} ({about['back_end']}), prompt version {about['prompt_version']}"}


def _sign(signed: str) -> str:
    return "+" if signed[0] == "+" else "\N{MINUS SIGN}"


def _interval(interval: Any) -> str:
    return "–" if interval is None else format_interval(interval)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    form = "  ".join(f"{{:{'<' if place == 0 else '>'}{width}}}" for place, width in enumerate(widths))
    return "\n".join(form.format(*row) for row in (head, *rows))
