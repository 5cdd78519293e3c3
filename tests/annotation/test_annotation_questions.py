"""The questions, what is read out of answers, and what of it is kept."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cpo_ray.annotation.asking.answers import AnswerError, content_prompt, judgement, settle
from cpo_ray.annotation.asking.cache import Answer, Answers
from cpo_ray.annotation.asking.questions import Question, Questions
from cpo_ray.annotation.back_ends.protocol import seconds_in
from cpo_ray.command_line import CONFIGS
from cpo_ray.config import ConfigError, load_as
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.hierarchy import Hierarchy, load_hierarchy

HIERARCHIES = Path(__file__).parents[2] / "hierarchy"
TREE = """
name: t
version: 1
description: d
exclusive: [[+a.round, +a.square]]
roots:
  - id: a
    label: Form
    alternative_labels: [shape]
    children:
      - id: a.kind
        label: Kind
        attributes:
          - {id: a.round, label: Round, definition: Is it round?, cue: Look., positive: {label: R, phrase: round},
             negative: {label: Open, phrase: open circle}, requires: {negative: [+a.round]}}
          - {id: a.square, label: Square, definition: Is it square?, cue: Look., positive: {label: S, phrase: square}}
      - id: a.make
        label: Make
        attributes:
          - {id: a.clean, label: Clean, definition: Is it clean?, cue: Look., positive: {label: C, phrase: clean},
             negative: {label: D, phrase: dirty}, forbids: {positive: [-a.old]}}
          - {id: a.old, label: Old, definition: Is it new?, cue: Look., positive: {label: N, phrase: new},
             negative: {label: O, phrase: old}}
  - id: b
    label: Light
    attributes:
      - {id: b.sun, label: Sun, definition: Is there sun?, cue: Look., positive: {label: S, phrase: sunny},
         negative: {label: D, phrase: dull}, applies_when: {prompt_has_any: [field]}, requires: {positive: [+a.clean]}}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Hierarchy:
    return changed(tmp_path, "", "")


def changed(folder: Path, old: str, new: str) -> Hierarchy:
    assert old in TREE
    (folder / "tree.yaml").write_text(TREE.replace(old, new) if old else TREE)
    return load_hierarchy(folder / "tree.yaml")


def answer(**changes: Any) -> str:
    whole = {"description": "d", "sub_dimensions": ["a.kind", "a.make"], "positive_ids": ["a.clean"], "negative_ids": ["a.old"]}
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not ...})


# ---- questions


def test_one_root_at_a_time_and_only_what_applies(tree: Hierarchy) -> None:
    questions = Questions(tree)
    (form,) = questions.about("a house")
    assert (form.root_id, form.attribute_ids) == ("a", ("a.round", "a.square", "a.clean", "a.old"))
    assert form.sub_dimensions == ("a.kind", "a.make")
    assert "Is it clean?" in form.system and "b.sun" not in form.system and "Is there sun?" not in form.system
    assert "Form, also shape" in form.system
    for rule in ("At most one of: positive a.round, positive a.square.", "positive a.clean never together with negative a.old."):
        assert rule in form.system
    assert "a flaw of it and so in both lists: Open." in form.system and "It has no negative." in form.system
    _, light = questions.about("a field")
    assert light.sub_dimensions == () and "sub_dimensions" not in light.schema["properties"]
    # What belongs to one picture is in the user's part alone, so that the long part is the same for all.
    other, _ = questions.about('a "field"')
    assert other.system == form.system and other.user == r'The picture is given; it is said to show "a \"field\"".'


def test_the_schema_takes_what_is_asked_for_and_nothing_else(tree: Hierarchy) -> None:
    (form,) = Questions(tree).about("a house")
    jsonschema.Draft202012Validator.check_schema(form.schema)
    jsonschema.validate(json.loads(answer()), form.schema)
    for wrong in (answer(extra=1), answer(positive_ids=["b.sun"]), answer(negative_ids=["a.square"]), answer(description=...)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(wrong), form.schema)
    assert list(form.schema["properties"]) == ["description", "sub_dimensions", "positive_ids", "negative_ids"]


@pytest.mark.parametrize(
    ("old", "new", "asked_anew"),
    [
        ("Is it clean?", "Is it tidy?", ["a"]),
        ("Is there sun?", "Is there sunshine?", ["b"]),
        ("exclusive: [[+a.round, +a.square]]", "exclusive: [[+a.round, +a.old]]", ["a"]),
        ("version: 1", "version: 2", []),
        ("description: d", "description: other", []),
        ("phrase: clean", "phrase: tidy", []),  # prompts of training say it, questions do not
    ],
)
def test_a_changed_tree_asks_again_what_changed_and_nothing_else(
    old: str, new: str, asked_anew: list[str], tmp_path: Path
) -> None:
    before = Questions(changed(tmp_path, "", "")).about("a field")
    after = Questions(changed(tmp_path, old, new)).about("a field")
    assert [b.root_id for a, b in zip(before, after, strict=True) if a.digest != b.digest] == asked_anew


@pytest.mark.parametrize("name", ["painting", "painting_toy", "product_photography"])
def test_every_shipped_tree_can_be_asked_about(name: str) -> None:
    tree = load_hierarchy(HIERARCHIES / f"{name}.yaml")
    questions = Questions(tree).about("")
    assert [q.root_id for q in questions] == [root.id for root in tree.roots]
    assert [i for q in questions for i in q.attribute_ids] == list(tree.attributes)
    for question in questions:
        mentioned = [i for i in tree.attributes if f"- {i} (" in question.system]
        assert tuple(mentioned) == question.attribute_ids
        # About 8,000 tokens at most: a small model's context holds it beside a picture.
        assert len(question.system) < 34_000


# ---- answers


def read(text: str, tree: Hierarchy) -> tuple[tuple[str, ...], tuple[str, ...], Counter[str]]:
    found = judgement(text, Questions(tree).about("a house")[0], tree)
    return found.positive_ids, found.negative_ids, found.dropped


@pytest.mark.parametrize(
    ("changes", "positive", "negative", "dropped"),
    [
        ({"negative_ids": []}, ("a.clean",), (), {}),
        ({"positive_ids": ["a.round"], "negative_ids": ["a.round"]}, ("a.round",), ("a.round",), {}),  # a flaw of its positive
        ({"positive_ids": ["a.clean", "a.clean", "x", "b.sun", 3, None], "negative_ids": []}, ("a.clean",), (),
         {"repeated": 1, "unknown id": 1, "not asked": 1, "no text": 2}),
        ({"positive_ids": [], "negative_ids": ["a.square"]}, (), (), {"not asked": 1}),  # it has no negative
        ({"sub_dimensions": ["a.kind", "c"], "positive_ids": ["a.square", "a.clean"], "negative_ids": []}, ("a.square",), (),
         {"unknown id": 1, "sub-dimension does not apply": 1}),
        ({"negative_ids": [], "score": 1, "x": 2}, ("a.clean",), (), {"unknown key": 2}),
        ({}, (), (), {"contradiction": 2}),  # a.clean forbids -a.old
        ({"positive_ids": ["a.old", "a.clean"]}, (), (), {"contradiction": 3}),
        ({"positive_ids": ["a.round", "a.square"], "negative_ids": []}, (), (), {"contradiction": 2}),
        ({"positive_ids": [], "negative_ids": ["a.round"]}, (), (), {"contradiction": 1}),  # -a.round lacks +a.round
        ({"positive_ids": ["a.round", "a.square"], "negative_ids": ["a.round"]}, (), (), {"contradiction": 3}),  # it lacks it
    ],
)  # fmt: skip
def test_what_is_kept_of_an_answer(
    changes: dict[str, Any], positive: tuple[str, ...], negative: tuple[str, ...], dropped: dict[str, int], tree: Hierarchy
) -> None:
    assert read(answer(**changes), tree) == (positive, negative, Counter(dropped))
    assert tree.problems(positive, negative, "a house") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "one JSON object, complete"),
        (answer()[:-5], "one JSON object, complete"),
        (f"```json\n{answer()[:-5]}\n```", "one JSON object, complete"),
        ("{" * 100_000, "one JSON object, complete"),
        ("[" * 100_000, "one JSON object"),
        ("[]", "one JSON object"),
        (answer(description=None), "'description' is missing or no text"),
        (answer(description="\ud800"), "'description' is not valid Unicode"),
        (answer(positive_ids=...), "'positive_ids' is missing or no list"),
        (answer(negative_ids="a.old"), "'negative_ids' is missing or no list"),
    ],
)
def test_what_is_no_answer(text: str, sentence: str, tree: Hierarchy) -> None:
    with pytest.raises(AnswerError, match=sentence):
        read(text, tree)


@pytest.mark.parametrize(
    "around",
    [
        "```json\n{}\n```",
        "Here is my answer: {}",
        "{}\nI hope that this helps {{really}}.",
        "<think>It may be {{'a': 1}}, or {{}}.</think>\n{}",
        "It may be {{}}.</think>```\n{}```",
    ],
)
def test_an_answer_is_found_in_what_models_put_around_it(around: str, tree: Hierarchy) -> None:
    assert read(around.format(answer()), tree) == read(answer(), tree)


def test_a_requirement_in_another_root_is_settled_when_both_are_known(tree: Hierarchy) -> None:
    light = Questions(tree).about("a field")[1]
    alone = judgement(json.dumps({"description": "", "positive_ids": ["b.sun"], "negative_ids": []}), light, tree)
    assert alone.positive_ids == ("b.sun",) and not alone.contradictions
    assert settle(tree, ["b.sun", "a.clean"], [], tree.attributes)[:2] == (("b.sun", "a.clean"), ())
    positive, negative, found = settle(tree, ["b.sun"], ["a.old"], tree.attributes)
    assert (positive, negative) == ((), ("a.old",))
    assert [c.sentence for c in found] == ["positive b.sun requires positive a.clean"]


def test_content_prompts() -> None:
    assert content_prompt('{"prompt": " a  house\\n by the sea "}') == "a house by the sea"
    for text in ('{"prompt": ""}', '{"prompt": 3}', "{}", json.dumps({"prompt": "x" * 401}), '{"prompt": "\\ud800"}', "nothing"):
        with pytest.raises(AnswerError):
            content_prompt(text)


# ---- what is kept of them

IDENTITY = {"back_end": "endpoint", "model": "m"}
QUESTION = Question("a", "s", "u", {})


def test_answers_are_there_again_for_the_same_question_picture_and_model_only(tmp_path: Path) -> None:
    with Answers(tmp_path, IDENTITY) as answers:
        answers.put("p", QUESTION, Answer("text \ud800", 10, 2))
        answers.put("p", QUESTION, Answer("second thoughts", 1, 1))
        answers.put_failure("q", QUESTION, "it failed")
        assert answers.get("p", QUESTION) == Answer("text \ud800", 10, 2)
    again = Answers(tmp_path, IDENTITY)
    assert again.get("p", QUESTION) == Answer("text \ud800", 10, 2)
    assert (again.failure("q", QUESTION), again.failure("p", QUESTION), again.get("q", QUESTION)) == ("it failed", None, None)
    assert (len(again), again.expected_tokens("a"), again.expected_tokens("b")) == (1, (6, 2), None)
    others = (Question("a", "S", "u", {}), Question("a", "s", "U", {}), Question("a", "s", "u", {"type": "object"}))
    assert [again.get("p", other) for other in others] == [None, None, None]
    assert Answers(tmp_path, {**IDENTITY, "model": "n"}).get("p", QUESTION) is None
    record = json.loads(next(tmp_path.iterdir()).read_text().splitlines()[0])
    assert (record["picture"], record["root"], record["model"], record["prompt_version"]) == ("p", "a", "m", 1)


def test_an_answer_beats_a_failure_whichever_came_first(tmp_path: Path) -> None:
    for order in (("failure", "answer"), ("answer", "failure")):
        folder = tmp_path / order[0]
        for what in order:
            with Answers(folder, IDENTITY) as answers:
                if what == "answer":
                    answers.put("p", QUESTION, Answer("text", 0, 0))
                else:
                    answers.put_failure("p", QUESTION, "it failed")
        again = Answers(folder, IDENTITY)
        assert again.failure("p", QUESTION) is None and again.get("p", QUESTION) == Answer("text", 0, 0)


def test_a_line_that_was_cut_off_at_any_byte_takes_no_other_with_it(tmp_path: Path) -> None:
    with Answers(tmp_path, IDENTITY) as answers:
        answers.put("p", QUESTION, Answer("one", 0, 0))
        answers.put("q", QUESTION, Answer("two", 0, 0))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data) - 1):
        os.truncate(path, 0)
        path.write_bytes(data[:length])
        again = Answers(tmp_path, IDENTITY)
        assert (len(again), again.get("q", QUESTION)) == (1, None)
    with Answers(tmp_path, IDENTITY) as more:
        more.put("q", QUESTION, Answer("two again", 0, 0))
    assert Answers(tmp_path, IDENTITY).get("q", QUESTION) == Answer("two again", 0, 0)


# ---- settings


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("annotate_*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_parses(path: Path) -> None:
    config = load_as(AnnotationConfig, path)
    assert (HIERARCHIES.parent / config.annotation.hierarchy).is_file()
    assert config.annotation.identity["back_end"] == config.annotation.back_end.kind


def test_mistakes_in_a_config_are_sentences() -> None:
    toy = CONFIGS / "annotate_toy.toml"
    with pytest.raises(ConfigError, match=r"unknown key 'annotation.backend'; did you mean 'back_end'\?"):
        load_as(AnnotationConfig, toy, ["annotation.backend=local"])
    with pytest.raises(ConfigError, match=r"'annotation.back_end.model' is missing; add it to the file or pass"):
        load_as(AnnotationConfig, toy, ["annotation.back_end=endpoint"])
    with pytest.raises(ConfigError, match="no annotation back end 'endpiont'; choose one of endpoint, local, measuring, or"):
        load_as(AnnotationConfig, toy, ["annotation.back_end=endpiont"])
    with pytest.raises(ConfigError, match=r"unknown key 'annotation.back_end.modle'; did you mean 'model'\?"):
        load_as(AnnotationConfig, CONFIGS / "annotate_endpoint.toml", ["annotation.back_end.modle=x"])
    with pytest.raises(ConfigError, match=r"'annotation.back_end': url must hold no user") as error:
        load_as(AnnotationConfig, CONFIGS / "annotate_endpoint.toml", ["annotation.back_end.url=https://me:secret@host/v1"])
    assert "secret" not in str(error.value)


def test_the_model_and_what_it_sees_tell_answers_apart_and_the_address_does_not() -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return load_as(AnnotationConfig, CONFIGS / "annotate_endpoint.toml", overrides).annotation.identity

    other = "annotation.back_end.url=http://127.0.0.1:9000/v1", "annotation.back_end.timeout_seconds=3"
    assert identity() == identity(*other)
    for key in ("back_end.model=other", "back_end.temperature=0.5", "side=512", "format=png"):
        assert identity() != identity(f"annotation.{key}")


def test_answers_of_earlier_versions_stay_valid() -> None:
    """They were kept by just these identities."""
    seen = {"side": 1024, "format": "jpeg"}
    found = {path.stem: load_as(AnnotationConfig, path).annotation.identity for path in CONFIGS.glob("annotate_*.toml")}
    assert found == {
        "annotate_endpoint": {"back_end": "endpoint", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "temperature": 0.0, **seen},
        "annotate_local": {
            "back_end": "local",
            "model": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "revision": None,
            "dtype": "bfloat16",
            **seen,
            "side": 768,
        },
        "annotate_toy": {"back_end": "measuring", "model": "toy", **seen, "format": "png"},
    }


def test_retry_after_is_a_number_or_a_date() -> None:
    assert (seconds_in("3"), seconds_in("0.5"), seconds_in("-1"), seconds_in(None), seconds_in("soon"), seconds_in("nan")) == (
        3.0,
        0.5,
        0.0,
        None,
        None,
        None,
    )
    assert seconds_in("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    later = seconds_in("Wed, 21 Oct 2115 07:28:00 GMT")
    assert later is not None and later > 1e9
