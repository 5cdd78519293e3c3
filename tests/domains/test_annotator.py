"""The annotator as domain: what labelled the data labels what models draw, through a real endpoint, and without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.annotation_server import Server
from support.reading import open_annotator, some_pictures

from cpo_ray.annotation.back_ends.base import BackEndUnusable
from cpo_ray.annotation.run import AnnotationError
from cpo_ray.config import Config, ConfigError, DomainSettings, changed, dump, load
from cpo_ray.core.files import write_text
from cpo_ray.domains.annotator.domain import AnnotatorSettings
from cpo_ray.domains.annotator.scorers import ShowsPrompt
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.domains.toy.scorers import ShowsContent
from cpo_ray.evaluation.measure import compare, measure
from cpo_ray.evaluation.scorers.base import Scorer, open_scorers
from cpo_ray.evaluation.scorers.negatives import Negatives
from cpo_ray.evaluation.tables import table
from cpo_ray.hierarchy import load_hierarchy

ROOT = Path(__file__).parents[2]
TOY, TREE = ROOT / "jobs" / "configs" / "toy.toml", ROOT / "hierarchy" / "painting_toy.yaml"
SCORERS: tuple[Scorer, ...] = (Negatives(), ShowsPrompt())


def test_through_an_endpoint_it_gives_the_toy_domains_own_numbers(tmp_path: Path) -> None:
    pictures, prompts = some_pictures(16)
    toy = ToyDomain(DomainSettings(use="toy"), load_hierarchy(TREE))
    own = measure(pictures, prompts, toy, (Negatives(), ShowsContent()))
    with Server() as server:
        found = measure(pictures, prompts, open_annotator(tmp_path, server.url), SCORERS)
    assert found.values == own.values and len(set(own.values["negatives"])) > 3 and len(set(own.values["content"])) == 2
    assert own.labels is not None and found.labels is not None
    for seen, expected in zip(found.labels, own.labels, strict=True):
        assert seen is not None and expected is not None
        assert (set(seen.positive_ids), set(seen.negative_ids)) == (set(expected.positive_ids), set(expected.negative_ids))


def test_no_answered_question_is_asked_twice_even_if_it_was_killed(tmp_path: Path) -> None:
    with Server(delay=0.02) as server:
        command = [sys.executable, "-m", "support.reading", str(tmp_path), server.url, "12"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        process = subprocess.Popen(command, env=environment, cwd=tmp_path)
        deadline = time.monotonic() + 600
        while server.total < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        time.sleep(0.2)  # what was under way has reached the server
        before = dict(server.calls)
        pictures, prompts = some_pictures(12)
        found = measure(pictures, prompts, open_annotator(tmp_path, server.url), SCORERS)
        again = {question for question, calls in server.calls.items() if calls > before.get(question, 0) and question in before}
        assert 30 <= len(before) < len(server.calls)
        assert len(again) <= 8, "asked twice is at most what was under way when it was killed"
        total = server.total
        assert measure(pictures, prompts, open_annotator(tmp_path, server.url), SCORERS) == found
        assert server.total == total, "the second time every answer is known"


def test_a_picture_without_an_answer_is_told_and_the_others_count(tmp_path: Path) -> None:
    pictures, prompts = some_pictures(6)
    lost = {"refused": prompts[1]}

    def script(said: str, asked: tuple[str, ...], call: int) -> str:
        return "400" if f'"{lost["refused"]}"' in said else ""

    with Server(script) as server:
        domain = open_annotator(tmp_path, server.url)
        found = measure(pictures, prompts, domain, SCORERS)
        hit = [prompt == prompts[1] for prompt in prompts]
        assert [value is None for value in found.values["negatives"]] == hit == [v is None for v in found.values["content"]]
        assert f", {sum(hit)} unscored" in table(compare({"base": found}, SCORERS))
        lost["refused"] = "nothing"
        again = measure(pictures, prompts, open_annotator(tmp_path, server.url), SCORERS)
        assert None not in again.values["negatives"], "what had failed is asked again by the next run"


def test_a_back_end_at_fault_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    pictures, prompts = some_pictures(8)
    with pytest.raises(AnnotationError, match="the last 5 drawn pictures could not be read, lastly: the endpoint failed"):
        open_annotator(tmp_path, "http://127.0.0.1:9/v1", stop_after=5, attempts=1).annotate(pictures, prompts)
    unusable = open_annotator(tmp_path, "http://127.0.0.1:9/v1", key_variable="NO_SUCH_KEY")
    assert "NO_SUCH_KEY, which is not set on this machine" in str(unusable.lacks())
    with pytest.raises(AnnotationError, match="NO_SUCH_KEY, which is not set") as told:
        unusable.annotate(pictures, prompts)
    assert isinstance(told.value.__cause__, BackEndUnusable)
    assert open_annotator(tmp_path, "http://127.0.0.1:9/v1").lacks() is None


def test_its_cost_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    pictures, prompts = some_pictures(4)
    with Server() as server:
        domain = open_annotator(tmp_path, server.url, price_in=1.0, questions_per_second=0.1)
        guessed = domain.cost(dict.fromkeys(prompts, 100))
        assert server.total == 0 and "scripted will read 400 pictures: at most" in guessed and "at 0.1 questions/s" in guessed
        measure(pictures, prompts, domain, SCORERS)
        questions = 100 * server.total
        expected = f"{questions / 1e3:.1f}k questions, about {questions / 1e3:.1f}M tokens in and {questions * 50 / 1e3:.1f}k out"
        told = open_annotator(tmp_path, server.url, price_in=1.0, questions_per_second=0.1).cost(dict.fromkeys(prompts, 100))
    assert expected in told, told
    assert f"which cost about {questions / 1e3:.2f}, and {questions / 360:.1f} h at 0.1 questions/s" in told


# ---- settings


def config(*overrides: str) -> Config:
    return load(TOY, ("domain.use=annotator", "domain.pictures=0", "model.base=x", *overrides))


def test_the_file_that_labelled_the_data_is_the_one_place_of_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "annotate.toml"
    text = (ROOT / "jobs" / "configs" / "annotate_endpoint.toml").read_text()
    file.write_text(text)
    found = config(f"domain.annotation={file}")
    assert isinstance(found.domain, AnnotatorSettings)
    assert found.domain.annotation.back_end.model == "Qwen/Qwen2.5-VL-7B-Instruct" and found.domain.annotation.side == 1024
    assert [scorer.name for scorer in open_scorers(found)] == ["negatives", "content"]
    record = tmp_path / "config.toml"
    write_text(record, dump(found))
    assert load(record) == found, "what a run leaves is complete by itself"
    file.write_text(text.replace(":8000", ":9000").replace("attempts = 5", "attempts = 9"))
    assert changed(record, config(f"domain.annotation={file}")) == [], "where the same agent answers may change"
    file.write_text(text.replace("side = 1024", "side = 512"))
    assert changed(record, config(f"domain.annotation={file}")) == ["domain.annotation.side = 512 (was 1024)"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((), r"'domain.annotation' is missing; add it to the file or pass"),
        (("domain.annotation=not_there.toml",), r"'domain.annotation' is 'not_there.toml': no config file at not_there.toml"),
        (("domain.annotation.back_end=measuring",), r"'domain.annotation.answers' is missing"),
        (("domain.annotation.hierarchy=x",), r"unknown key 'domain.annotation.hierarchy'"),
        (("domain.annotation.back_end=endpiont",), "no annotation back end 'endpiont'"),
    ],
)
def test_mistakes_are_sentences(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(*overrides)


def test_its_question_about_content_needs_it() -> None:
    scorer = "cpo_ray.domains.annotator.scorers:ShowsPrompt"
    with pytest.raises(ConfigError, match=r"asks a domain of the class AnnotatorDomain, and domain\.use is 'toy'"):
        open_scorers(load(TOY, (f'evaluation.scorers=["{scorer}"]',)))


def test_other_machines_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    told: dict[str, Any] = {"back_end": {"kind": "local", "model": "model"}, "answers": "answers"}
    settings = AnnotatorSettings(use="annotator", annotation=told).on_other_machines().annotation  # type: ignore[arg-type]
    assert (settings.answers, settings.back_end.model) == (tmp_path / "answers", str(tmp_path / "model"))


def test_the_measuring_agent_serves_without_an_endpoint(tmp_path: Path) -> None:
    pictures, prompts = some_pictures(5)
    toy = ToyDomain(DomainSettings(use="toy"), load_hierarchy(TREE))
    found = measure(pictures, prompts, open_annotator(tmp_path), SCORERS)
    assert found.values == measure(pictures, prompts, toy, (Negatives(), ShowsContent())).values
    assert np.isfinite([value for value in found.values["negatives"] if value is not None]).all()
