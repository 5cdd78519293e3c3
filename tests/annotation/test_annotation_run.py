"""The whole job: on a real Ray against a real endpoint, and the folder that it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.annotating import annotate as annotate_directly
from support.annotating import effort, settings
from support.annotation_server import Server, tenth_of_each
from support.mixed_folder import mixed_folder

from cpo_ray.annotation.report import AnnotationReport
from cpo_ray.annotation.results import check_output, write_results
from cpo_ray.annotation.run import AnnotationError, annotate, listed
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.domains.toy.dataset import draw_pictures, make_dataset
from cpo_ray.hierarchy import load_hierarchy


def shards(folder: Path) -> dict[str, bytes]:
    """All that must not depend on who asked when; the report counts just that."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def changed(config: AnnotationConfig, **changes: Any) -> AnnotationConfig:
    return config.model_copy(update={"annotation": config.annotation.model_copy(update=changes)})


@pytest.mark.ray
def test_mixed_pictures_through_a_bad_endpoint_become_shards_that_train(ray_session: None, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 30, seed=3)
    unreadable = {f"mixed/{name}": why for name, why in mixed_folder(tmp_path / "pictures" / "mixed").items() if why}
    with Server(tenth_of_each) as server:
        config = changed(settings(tmp_path, server.url), write_prompts=True, side=64)
        tree = load_hierarchy(config.annotation.hierarchy)
        expected = annotate(config, dry_run=True)
        assert server.total == 0 and not config.annotation.output.exists() and not config.annotation.answers.exists()

        seen: list[int] = []
        report = annotate(config, on_progress=lambda report: seen.append(report.done))
        assert seen == list(range(1, 51))
        assert (report.annotated, report.set_aside.total()) == (50 - len(unreadable), len(unreadable))
        assert report.unlisted == {"no picture": 1} and f"{len(unreadable) + 1} set aside" in report.summary()
        assert (expected.annotated, expected.set_aside) == (report.annotated, report.set_aside)
        assert (expected.effort.asked, expected.effort.known) == (report.effort.asked, report.effort.known)
        assert report.effort.calls == server.total > report.effort.asked

        dataset = AnnotatedDataset.open(config.annotation.output)
        dataset.check_hierarchy(tree)
        assert len(dataset.ids) == report.annotated and len(dataset.split("train")) > 20
        quarantine = [json.loads(line) for line in (config.annotation.output / "quarantine.jsonl").read_text().splitlines()]
        expected_reasons = {**unreadable, "mixed/notes.txt": "neither a picture nor a metadata file"}
        assert {row["id"] for row in quarantine} == set(expected_reasons)
        assert all(expected_reasons[row["id"]] in row["reason"] for row in quarantine)

        first, total = shards(config.annotation.output), server.total
        again = annotate(changed(config, actors=2))
        assert (server.total, again.effort.asked, again.effort.known) == (total, 0, expected.effort.asked + expected.effort.known)
        assert shards(config.annotation.output) == first
        assert annotate(config, dry_run=True).effort.asked == 0
        assert annotate(config, limit=5).annotated == len(AnnotatedDataset.open(config.annotation.output).ids) == 5


@pytest.mark.ray
def test_a_back_end_that_nothing_can_be_got_from_stops_the_run_with_a_sentence(ray_session: None, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 40, seed=3)
    with pytest.raises(AnnotationError, match="NO_SUCH_KEY, which is not set where the actors run"):
        annotate(settings(tmp_path, "http://127.0.0.1:9/v1", key_variable="NO_SUCH_KEY"))
    # Nobody listens there; after some pictures in vain there is no use in going on.
    config = changed(settings(tmp_path, "http://127.0.0.1:9/v1", attempts=1), stop_after=5)
    with pytest.raises(
        AnnotationError, match=r"the last 5 pictures got no answer, lastly: the endpoint failed 1 times, .*--retry-failed"
    ):
        annotate(config)
    assert not config.annotation.output.exists()


# ---- the folder that is left, without Ray


def written(config: AnnotationConfig) -> AnnotationReport:
    """Annotate directly and write the results."""
    outcomes = annotate_directly(config)
    report = AnnotationReport(config, len(outcomes), dry_run=False)
    for outcome in outcomes.values():
        report.count(outcome)
    write_results(config, load_hierarchy(config.annotation.hierarchy), listed(config, None), outcomes, report)
    return report


def test_rows_say_who_labelled_them_and_by_what(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 6, seed=3)
    config = settings(tmp_path)
    report = written(config)
    tree = load_hierarchy(config.annotation.hierarchy)
    dataset = AnnotatedDataset.open(config.annotation.output)
    # The domain's own data set of the same seed: the same pictures and labels, found by another way.
    direct = make_dataset(tmp_path / "direct", 6, 3, tree)
    names = sorted(direct.ids, key=lambda name: f"{name}.png")
    assert dataset.ids == tuple(f"{name}.png" for name in names)
    assert [dataset.labels(i) for i in dataset.ids] == [direct.labels(i) for i in names]
    assert dataset.images(dataset.ids) == direct.images(names)
    rows = pq.read_table(config.annotation.output / "annotated-00000.parquet").to_pylist()
    assert {row["hierarchy_hash"] for row in rows} == {tree.content_hash}
    assert json.loads(rows[0]["provenance"]) == {
        "source": dataset.ids[0],
        "back_end": "measuring",
        "model": "toy",
        "prompt_version": 1,
    }
    lines = [json.loads(line) for line in (config.annotation.output / "judgements.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(dataset.ids)
    assert lines[0]["roots"]["edge"]["sub_dimensions"] == ["edge.contour"]
    assert lines[0]["roots"]["edge"]["description"].startswith("Measured: edge.clarity")
    counts = json.loads((config.annotation.output / "report.json").read_text())
    assert (counts["annotated"], counts["asked"], report.annotated) == (6, report.effort.asked, 6)


def test_the_output_is_replaced_as_a_whole_and_that_of_others_never(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 4, seed=3)
    config = settings(tmp_path)
    written(config)
    first = shards(config.annotation.output)
    (config.annotation.output / "left_behind").touch()
    written(config)
    assert shards(config.annotation.output) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "output", "pictures"]
    make_dataset(tmp_path / "direct", 2, 3, load_hierarchy(config.annotation.hierarchy))
    with pytest.raises(DataError, match="of another origin"):
        check_output(tmp_path / "direct", tmp_path / "pictures")
    with pytest.raises(DataError, match=r"lies in pictures\.path"):
        check_output(tmp_path / "pictures" / "output", tmp_path / "pictures")


def test_a_file_that_changes_under_the_run_is_not_given_labels_that_are_not_its_own(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 3, seed=3)
    config = settings(tmp_path)
    outcomes = annotate_directly(config)
    name = next(iter(outcomes))
    outcomes[name] = replace(outcomes[name], digest="0" * 32)
    report = AnnotationReport(config, 3, dry_run=False)
    write_results(config, load_hierarchy(config.annotation.hierarchy), listed(config, None), outcomes, report)
    assert name not in AnnotatedDataset.open(config.annotation.output).ids
    (row,) = [json.loads(line) for line in (config.annotation.output / "quarantine.jsonl").read_text().splitlines()]
    assert row["id"] == name and "changed while it was annotated" in row["reason"]


def test_a_changed_hierarchy_asks_what_changed(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 5, seed=3)
    config = settings(tmp_path)
    first = effort(annotate_directly(config))
    text = config.annotation.hierarchy.read_text()
    assert text.count("Edge clarity") == 1
    (tmp_path / "new.yaml").write_text(text.replace("Edge clarity", "Clarity of edges"))
    second = effort(annotate_directly(changed(config, hierarchy=tmp_path / "new.yaml")))
    assert (second.asked, second.known) == (5, first.asked - 5)


def test_the_summary_of_a_dry_run_names_the_cost(tmp_path: Path) -> None:
    report = AnnotationReport(settings(tmp_path, "http://127.0.0.1:9/v1", price_in=2.0, price_out=10.0), 12, dry_run=True)
    report.annotated, report.effort.asked, report.effort.known = 11, 77, 7
    report.set_aside["unusable picture"] = 1
    report.effort.tokens_in, report.effort.tokens_out = 1_500_000, 20_000
    assert report.summary().splitlines() == [
        "12 pictures: 11 can be annotated, 1 cannot (unusable picture: 1)",
        "77 questions to ask, 7 answered already",
        "about 1.5M tokens in and 20.0k out, which cost about 3.20, and 38 s at 2 questions/s (questions_per_second)",
    ]


@pytest.mark.ray
def test_the_command_line_from_nothing(tmp_path: Path) -> None:
    overrides = [f"pictures.path={tmp_path / 'p'}", "domain.pictures=8", f"annotation.answers={tmp_path / 'a'}"]
    command = [sys.executable, "jobs/annotate.py", *overrides, f"annotation.output={tmp_path / 'o'}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("8 pictures annotated, 0 set aside\n")
    assert "annotate: pictures 8 of 8" in answer.stderr and "questions/s" in answer.stderr
    assert len(AnnotatedDataset.open(tmp_path / "o").ids) == 8
