"""The door to a domain: how one is chosen and told, what is refused, and who asks for what with which noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.outside.domain import Photographs, PhotographSettings

from cpo_ray.command_line import CONFIGS
from cpo_ray.config import Config, ConfigError, DomainSettings, changed, dump, load, load_as
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.core.prompts import Labels
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.evaluation.domain import Domain, NoDomain, Picture, domain_class, open_domain
from cpo_ray.evaluation.rounds import evaluation_round, gate_round, samples_round, shared_noise, validation_round
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.models.bases.source import base_source
from cpo_ray.preflight.checks import check
from cpo_ray.recipes import expert_training
from cpo_ray.targets.expert import frozen_inputs

ROOT = Path(__file__).parents[2]
TOY = CONFIGS / "toy.toml"
OWN = "support.outside.domain:Photographs"
#: Without a domain nothing brings a base, and nobody draws pictures.
NONE = ("domain.use=none", "domain.pictures=0", "model.base=x")


def config(*overrides: str) -> Config:
    return load(TOY, overrides)


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return load_hierarchy(ROOT / "hierarchy" / "painting_toy.yaml")


def test_a_domain_comes_by_name_or_by_import_path_and_is_told_what_it_can_be_told(tree: Hierarchy, tmp_path: Path) -> None:
    assert type(open_domain(config().domain, tree)) is ToyDomain
    assert type(open_domain(config(*NONE).domain, tree)) is NoDomain
    own = config(f"domain.use={OWN}", "domain.pictures=0", "domain.dark=100", "model.base=x")
    assert own.domain == PhotographSettings(use=OWN, dark=100)
    found = open_domain(own.domain, tree)
    assert type(found) is Photographs
    grey: list[Picture] = [np.full((4, 4, 3), level, np.uint8) for level in (99, 101)]
    assert [labels.negative_ids for labels in found.annotate(grey, ["p", "q"])] == [("light.contrast",), ()]
    (tmp_path / "config.toml").write_text(dump(own))
    assert load(tmp_path / "config.toml") == own and changed(tmp_path / "config.toml", own) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["domain.use=tow"], "there is no domain 'tow'; choose one of none, toy, annotator, or give your own as module:name"),
        (["domain.dark=3"], "unknown key 'domain.dark'; valid keys here: pictures, use"),
        ([f"domain.use={OWN}", "model.base=x"], f"pictures is 1000, yet the domain '{OWN}' draws none; set it to 0"),
        (["domain.use=none"], "pictures is 1000, yet the domain 'none' draws none; set it to 0 and bring your own pictures"),
        ([f"domain.use={OWN}", "domain.pictures=0"], "'model.base' is missing"),
        (["domain.use=support.outside.scorer:Brightness"], "has no class `settings`"),
    ],
)
def test_a_wrong_domain_is_answered_with_a_sentence(overrides: Sequence[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*overrides)
    assert sentence in str(caught.value)


def test_an_annotation_takes_the_same_section() -> None:
    annotate = CONFIGS / "annotate_toy.toml"
    assert load_as(AnnotationConfig, annotate).domain == DomainSettings(use="toy", pictures=200)
    with pytest.raises(ConfigError, match="pictures is 200, yet the domain 'none' draws none"):
        load_as(AnnotationConfig, annotate, ["domain.use=none"])


class Silent(Domain):
    """Says that it reads labels, and does not."""


class Empty(NoDomain):
    own_pictures = True


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("Silent", r"has no annotate\(\); write it, or set its reads_labels = False"), ("Empty", r"has no make_data\(\); write it")],
)
def test_a_domain_that_lacks_what_it_promises_is_refused_before_anything_starts(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        domain_class(DomainSettings(use=f"{__name__}:{name}"))
    found = check(config(f"domain.use={__name__}:{name}", "domain.pictures=0", "model.base=x"))
    assert any(finding.verdict == "missing" and "write it, or set its" in finding.sentence for finding in found)


def test_a_class_of_another_kind_is_no_domain() -> None:
    with pytest.raises(ConfigError, match=r"is not a subclass of cpo_ray\.evaluation\.domain\.Domain"):
        domain_class(DomainSettings(use="cpo_ray.domains.toy.measuring:MeasuringBackEnd"))


# ---- its base


def test_a_base_comes_with_the_domain_or_must_be_named() -> None:
    assert config().model.base == "package:cpo_ray.domains.toy/assets/base"
    assert 'base = "package:cpo_ray.domains.toy/assets/base"' in dump(config()), "the same on every machine"
    assert config("model.base=mine").model.base == "mine"


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("package:cpo_ray.domains.toy/assets/bass", "the package cpo_ray.domains.toy has no folder 'assets/bass'"),
        ("package:no_such_package/base", "'no_such_package' cannot be imported"),
        ("package:/base", "'' cannot be imported"),
    ],
)
def test_a_base_that_no_package_ships_is_answered_with_a_sentence(base: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        base_source(config(f"model.base={base}").model)


def test_the_address_of_the_embedded_base_is_that_of_its_contents(tmp_path: Path) -> None:
    """Target shards of earlier versions, which called it by another name, stay where they are. A new base has a new number."""
    data = tmp_path / "data"
    toy = config(f"data.folder={data}", "domain.pictures=4")
    open_domain(toy.domain, load_hierarchy(toy.data.hierarchy)).make_data(data, 4, 0)
    pictures = {name: None for name in AnnotatedDataset.open(data).ids}
    frozen = expert_training(toy, cast(Any, pictures)).frozen
    assert frozen_inputs(frozen).base == "30f88bdd295820a03e008acb30b5575a@None"


# ---- who draws what


class Twelve:
    """A data set of twelve pictures, all of the validation split but one."""

    ids = tuple(f"picture-{number}" for number in range(12))

    def split(self, name: str) -> tuple[str, ...]:
        return {"validation": self.ids[:11], "test": self.ids[11:]}[name]

    def labels(self, name: str) -> Labels:
        return Labels(f"prompt of {name}", ("edge.clarity",), ())


def test_rounds_ask_for_the_domains_prompts_or_the_data_sets(tree: Hierarchy) -> None:
    dataset = cast(AnnotatedDataset, Twelve())
    settings = config(*NONE, "evaluation.pictures=3", "evaluation.samples=2")
    evaluation = evaluation_round(settings, dataset, open_domain(settings.domain, tree))
    assert evaluation.prompts == ("prompt of picture-11",) * 3 and list(evaluation.seeds) == [90_000, 90_001, 90_002]
    gate = gate_round(config(), dataset, 48)
    assert gate.prompts[:2] == ("prompt of picture-0", "prompt of picture-1") and gate.seeds == range(50_000, 50_048)
    assert samples_round(settings, dataset).seeds == range(60_000, 60_002)
    own = validation_round(config(), dataset, open_domain(config().domain, tree), 200)
    assert own.seeds == range(70_000, 70_200) and not any(prompt.startswith("prompt of") for prompt in own.prompts)


def test_nobody_tunes_on_the_noise_that_counts() -> None:
    assert shared_noise(load(CONFIGS / "toy_sweep.toml")) is None
    clash = "the gate would draw from the noise of seeds 50000 to 50047, and the evaluation from that of 50047 to 50166; choose"
    assert str(shared_noise(config("evaluation.seed=50047"))).startswith(clash)
    assert shared_noise(config("evaluation.seed=50048")) is None
    assert shared_noise(config("evaluation.seed=70000")) is None, "no sweep draws there"
    sweep = load(CONFIGS / "toy_sweep.toml", ["evaluation.seed=69950"])
    assert "the validation would draw from the noise of seeds 70000 to 70079" in str(shared_noise(sweep))
    assert any(finding.verdict == "missing" and "the noise of seeds" in finding.sentence for finding in check(sweep))
