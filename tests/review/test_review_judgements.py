"""What reviewers' files hold, what may go wrong with them, and what the report counts from them."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from support.elements import Elements
from support.reviewing import TREE, rewritten, settings

from cpo_ray.config.review import ReviewSettings
from cpo_ray.core.files import DiskFullError
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.review import findings
from cpo_ray.review.findings import Votes
from cpo_ray.review.judgements import JudgementFile, ReviewError, Verdict, Verdicts, judgement_file, read_judgements, signed_ids
from cpo_ray.review.pile import open_pile, reviewed_ids
from cpo_ray.review.report import report


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> ReviewSettings:
    return settings(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="module")
def dataset(review: ReviewSettings) -> AnnotatedDataset:
    return AnnotatedDataset.open(review.annotations)


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(TREE)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_last_judgement_holds_and_a_torn_line_is_cut_away(tmp_path: Path, dataset: AnnotatedDataset, tree: Hierarchy) -> None:
    file, sample = tmp_path / "ann.jsonl", dataset.ids[0]
    first, second, third = signed_ids(dataset.labels(sample))[:3]
    kept = JudgementFile(file, dataset, tree)
    kept.append(sample, {first: "confirmed", second: "rejected"})
    kept.append(sample, {first: "unsure", second: "open"})
    assert kept.verdicts == {sample: {first: "unsure"}}
    kept.close()
    assert [(line["sign"] + line["attribute"], line["verdict"]) for line in lines(file)] == [
        (first, "confirmed"),
        (second, "rejected"),
        (first, "unsure"),
        (second, "open"),
    ]
    assert {line["hierarchy"] for line in lines(file)} == {tree.content_hash}

    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines()[0][:40])
    assert read_judgements(file, dataset, tree) == {sample: {first: "unsure"}}
    again = JudgementFile(file, dataset, tree)
    again.append(sample, {third: "confirmed"})
    again.close()
    assert file.read_bytes().startswith(whole) and len(lines(file)) == 5
    assert read_judgements(file, dataset, tree) == {sample: {first: "unsure", third: "confirmed"}}


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path, dataset: AnnotatedDataset, tree: Hierarchy) -> None:
    file, sample = tmp_path / "ann.jsonl", dataset.ids[0]
    first, second = signed_ids(dataset.labels(sample))[:2]
    kept = JudgementFile(file, dataset, tree)
    kept.append(sample, {first: "confirmed"})
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="is full"):
            kept.append(sample, {second: "confirmed"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before and kept.verdicts == {sample: {first: "confirmed"}}
    kept.append(sample, {second: "rejected"})
    assert len(lines(file)) == 2
    kept.close()


def test_only_one_review_writes_a_file(review: ReviewSettings) -> None:
    pile = open_pile(review, "twice", None)
    with pytest.raises(ReviewError, match=r"twice\.jsonl is open in another review"):
        open_pile(review, "twice", None)
    pile.close()
    open_pile(review, "twice", None).close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hierarchy": "0" * 16}, "was judged by hierarchy 0000000000000000 and not by 'painting-toy'"),
        ({"sample": "lost"}, "judges the picture 'lost', which is not in"),
        ({"attribute": "edge.clearness"}, "judges the label '.edge.clearness', which '.*' does not have in"),
        ({"verdict": "maybe"}, "is not a judgement"),
        ({"who": "me"}, "is not a judgement"),
    ],
)
def test_judgements_of_something_else_are_refused_with_their_line(
    change: dict[str, str], sentence: str, tmp_path: Path, dataset: AnnotatedDataset, tree: Hierarchy
) -> None:
    file, sample = tmp_path / "ann.jsonl", dataset.ids[0]
    kept = JudgementFile(file, dataset, tree)
    kept.append(sample, dict.fromkeys(signed_ids(dataset.labels(sample))[:2], "confirmed"))
    kept.close()
    good, other = lines(file)
    file.write_text(f"{json.dumps(good)}\n{json.dumps(other | change)}\n")
    with pytest.raises(ReviewError, match=f"line 2 {sentence}"):
        JudgementFile(file, dataset, tree)


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".ann", "a" * 65, "ann\n"])
def test_a_reviewer_needs_a_name_for_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReviewError, match="needs a name of letters"):
        judgement_file(tmp_path, name)


def test_a_larger_sample_begins_with_the_smaller_one(dataset: AnnotatedDataset) -> None:
    assert reviewed_ids(dataset, None, 0) == dataset.ids
    assert reviewed_ids(dataset, 3, 0)[:2] == reviewed_ids(dataset, 2, 0)
    assert sorted(reviewed_ids(dataset, 9, 0)) == sorted(dataset.ids)
    assert len({reviewed_ids(dataset, 4, seed) for seed in range(9)}) > 1


# ---- what is counted from them


def test_trust_and_rejections_by_hand(dataset: AnnotatedDataset, tree: Hierarchy) -> None:
    a, b = dataset.ids[:2]
    signed = next(s for s in signed_ids(dataset.labels(a)) if s in signed_ids(dataset.labels(b)))
    other = next(s for s in signed_ids(dataset.labels(a)) if tree.root_of(s[1:]) != tree.root_of(signed[1:]))
    reviews: list[Verdicts] = [
        {a: {signed: "rejected", other: "confirmed"}, b: {signed: "confirmed"}},
        {a: {signed: "rejected", other: "unsure"}, b: {signed: "rejected"}},
    ]
    rows = {row.name: row for row in findings.trust_by_root(reviews, tree)}
    mine = rows[tree.root_of(signed[1:]).label]
    # Two labels of two judgements: 1 of 4 confirmed, one pair alike and one not. Coincidences cc 0, rr 2, cr 1.
    assert mine.votes == Votes(1, 3, 0) and mine.accuracy is not None and mine.accuracy.mean == 0.25
    assert mine.raw == 0.5 and mine.alpha is not None and mine.alpha.mean == pytest.approx(1 - 3 * 1 / (1 * 3))
    theirs = rows[tree.root_of(other[1:]).label]
    assert theirs.votes == Votes(1, 0, 1) and theirs.raw is None and theirs.alpha is None
    assert rows["all"].votes == Votes(2, 3, 1)
    (rejected,) = findings.rejected_labels(reviews)
    assert rejected.signed_id == signed and rejected.votes == Votes(1, 3, 0)
    assert list(rejected.pictures.items()) == [(a, Votes(0, 2, 0)), (b, Votes(1, 1, 0))]


def test_two_back_ends_by_hand(dataset: AnnotatedDataset, tree: Hierarchy, tmp_path: Path) -> None:
    assert all((row.overlap and row.overlap.mean) == 1 for row in findings.likeness_by_root(dataset, dataset, tree)[1])
    labels = dataset.labels(dataset.ids[0])
    lost = labels.positive_ids[0]

    def without(row: dict[str, Any]) -> dict[str, Any]:
        kept = [name for name in row["positive_ids"] if name != lost or row["id"] != dataset.ids[0]]
        return row | {"positive_ids": kept}

    count, rows = findings.likeness_by_root(dataset, rewritten(dataset.folder, tmp_path / "other", without), tree)
    given = [len(signed_ids(dataset.labels(sample))) for sample in dataset.ids]
    alike = rows[-1]
    assert count == 4 and alike.overlap is not None and alike.kappa is not None
    assert alike.overlap.mean == pytest.approx((3 + (given[0] - 1) / given[0]) / 4)
    possible = sum(
        2 - (a.negative is None) for s in dataset.ids for a in tree.attributes.values() if a.applies_to(dataset.labels(s).prompt)
    )
    p, q = sum(given) / possible, (sum(given) - 1) / possible
    chance = p * q + (1 - p) * (1 - q)
    assert alike.kappa.mean == pytest.approx((1 - 1 / possible - chance) / (1 - chance))
    strangers = rewritten(dataset.folder, tmp_path / "strangers", lambda row: row | {"id": "x" + row["id"]})
    with pytest.raises(DataError, match=r"no picture of .* is in"):
        findings.likeness_by_root(dataset, strangers, tree)
    resized = rewritten(dataset.folder, tmp_path / "resized", lambda row: row | {"width": 65})
    with pytest.raises(DataError, match="their sizes differ"):
        findings.likeness_by_root(dataset, resized, tree)


def test_what_goes_together(tmp_path: Path, tree: Hierarchy) -> None:
    review = settings(tmp_path, 12)

    def paired(row: dict[str, Any]) -> dict[str, Any]:
        even = int(row["id"][-1]) % 2 == 0
        return row | {"positive_ids": ["edge.clarity", "light.contrast"] * even, "negative_ids": ["color.palette"] * (not even)}

    together = findings.cooccurrence(rewritten(review.annotations, tmp_path / "paired", paired), tree)
    assert together is not None
    assert [(set(pair.labels), pair.both, pair.expected, round(pair.phi, 6)) for pair in together.pairs] == [
        ({"+edge.clarity", "+light.contrast"}, 6, 3.0, 1.0),
        ({"+edge.clarity", "-color.palette"}, 0, 3.0, -1.0),
        ({"+light.contrast", "-color.palette"}, 0, 3.0, -1.0),
    ]


# ---- the report


def test_the_report_shows_it_all_and_nothing_is_taken_for_markup(tmp_path: Path, tree: Hierarchy) -> None:
    source = settings(tmp_path, 12)
    hostile = "<img src=x onerror=alert(1)>"
    rewritten(source.annotations, tmp_path / "hostile", lambda row: row | {"id": f"{row['id']}{hostile}"})
    review = source.model_copy(update={"annotations": tmp_path / "hostile"})
    with pytest.raises(ReviewError, match=r"there are no judgements in .*; review pictures first"):
        report(review, None)
    dataset = AnnotatedDataset.open(review.annotations)
    given: dict[str, Verdict] = {"ann": "confirmed", "bert": "rejected"}
    for name, verdict in given.items():
        kept = JudgementFile(judgement_file(review.judgements, name), dataset, tree)
        for sample in dataset.ids[:3]:
            kept.append(sample, dict.fromkeys(signed_ids(dataset.labels(sample)), verdict))
        kept.close()
    before = {path: path.read_bytes() for path in review.annotations.iterdir()}
    text = report(review, review.annotations)
    assert {path: path.read_bytes() for path in review.annotations.iterdir()} == before
    head, _, *rows = text.splitlines()
    assert head == "3 of 12 pictures reviewed by ann, bert"
    judged = sum(len(signed_ids(dataset.labels(sample))) for sample in dataset.ids[:3])
    total = next(row.split() for row in rows if row.startswith("all"))
    assert total[:5] == ["all", str(judged), str(judged), "0", "0.50"] and total[7] == "0.00"
    assert [row for row in rows if row.startswith("all")][1].split()[1:4] == ["1.00", "[1.00,", "1.00]"]
    html = (review.judgements / "report.html").read_text()
    page = Elements(html)
    assert "http" not in html and "<script" not in html
    assert all(image["src"].startswith("data:image/webp") for image in page.all("img"))
    assert len(page.all("img")) > 10 and html.count("&lt;img src=x") > 10
    assert [path for path in os.listdir(review.judgements) if path.endswith(".partial")] == []
