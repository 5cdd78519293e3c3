"""Sections whose form is chosen by a name in them, and what a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import Field, PositiveInt, SerializeAsAny

from cpo_ray.config import ConfigError, load_as
from cpo_ray.config.chosen import Chosen
from cpo_ray.config.keys import place
from cpo_ray.config.registry import Registry
from cpo_ray.config.section import Free, Section, free_on_resume


class Animal(Section):
    name: str


class Dog(Animal):
    weight: PositiveInt = 20


class Bird(Animal):
    span: float
    """Metres."""


DOG, BIRD, STONE = SimpleNamespace(settings=Dog), SimpleNamespace(settings=Bird), SimpleNamespace(settings=None)
ANIMALS = Registry("animal", {"dog": f"{__name__}:DOG", "bird": f"{__name__}:BIRD"})
Pet = Annotated[SerializeAsAny[Animal], Chosen(ANIMALS, "dog")]


class House(Section):
    pet: Pet = Field(default="dog", validate_default=True)
    others: Free[tuple[Pet, ...]] = ()
    rooms: Free[PositiveInt] = 1


class Street(Section):
    house: House = House()


def street(folder: Path, text: str, *overrides: str) -> Street:
    file = folder / "street.toml"
    file.write_text(text)
    return load_as(Street, file, overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "pet"),
    [
        ("", (), Dog(name="dog")),
        ("house.pet = 'dog'", (), Dog(name="dog")),
        ("[house.pet]\nname = 'bird'\nspan = 0.3", (), Bird(name="bird", span=0.3)),
        ("[house.pet]\nweight = 7", (), Dog(name="dog", weight=7)),  # a section without a name is the default's
        ("house.pet = 'dog'", ("house.pet.weight=7",), Dog(name="dog", weight=7)),  # a name alone can be given more
        ("", ("house.pet={name='bird', span=2}",), Bird(name="bird", span=2)),
        ("[house.pet]\nname = 'bird'\nspan = 0.3", ("house.pet=dog",), Dog(name="dog")),  # a name replaces the whole section
        ("", (f"house.pet={__name__}:DOG",), Dog(name=f"{__name__}:DOG")),
    ],
)
def test_a_name_chooses_the_form_of_its_section(text: str, overrides: tuple[str, ...], pet: Animal, tmp_path: Path) -> None:
    found = street(tmp_path, text, *overrides).house
    assert found.pet == pet and type(found.pet) is type(pet)
    assert House.model_validate(found.model_dump(mode="json")) == found, "what the chosen form alone has is written down too"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("house.pet.weihgt=1", "unknown key 'house.pet.weihgt'; did you mean 'weight'? valid keys here: name, weight"),
        ("house.pet.weight=0", "'house.pet.weight' is 0: input should be greater than 0"),
        ("house.pet=bird", "'house.pet.span' is missing; add it to the file or pass house.pet.span=VALUE"),
        ("house.pet=cat", "'house.pet' is 'cat': there is no animal 'cat'; choose one of dog, bird, or give your own as module:"),
        ("house.pet=7", "'house.pet' is 7: expected a name, such as 'dog', or a section with name = 'dog'"),
        ("house.pet.name=7", "'house.pet': name is 7; choose one of dog, bird"),
        (f"house.pet={__name__}:STONE", "has no class `settings`"),
        (
            "house.pet=no.module:X",
            "no.module cannot be imported: No module named 'no'; put the folder that holds it on PYTHONPATH",
        ),
        ("house.others=['dog', {name='bird', spam=1, span=1}]", "'house.others.1.spam'; did you mean 'span'?"),
    ],
)
def test_a_wrong_choice_is_answered_with_one_sentence(override: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        street(tmp_path, "", override)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_leads_to_its_type_and_marks() -> None:
    tree: dict[str, Any] = {"house": {"others": ["dog", {"name": "bird", "span": 1}]}}
    span = place(Street, ("house", "others", 1, "span"), tree)
    assert span is not None and (span.annotation, span.given) == (float, 1)
    assert place(Street, ("house", "others", 0, "span"), tree) is None, "a dog has none"
    assert place(Street, ("house", "rooms", "more"), tree) is None
    assert free_on_resume(House) == {"others", "rooms"}
