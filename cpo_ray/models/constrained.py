"""Constrained decoding: the model can only write an answer of the required form, a JSON object of free texts and lists of given
ids.

The form is a walk over characters. A token is allowed if all its characters are. No list repeats an id. Only the part of JSON
Schema that our questions use is supported, and nothing beside the tokenizer is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

#: Longest free text in characters; the last token may exceed it.
MAX_TEXT = 400


class FormPlace(NamedTuple):
    """A place in a form: the part that the text has reached, what of it is written, and the ids that the list holds so far."""

    part: int
    written: str = ""
    used: frozenset[str] = frozenset()


class Form:
    """The form that a JSON Schema describes: an object whose properties are texts and arrays with an `enum` of ids.

    Raises ValueError for any other schema.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        # Fixed texts, and the slots between them: None for a free text, the ids for a list.
        self.parts: list[str | tuple[str, ...] | None] = []
        opening = "{"
        for name, kind in schema["properties"].items():
            if kind["type"] == "string":
                self.parts += [f'{opening}{json.dumps(name)}: "', None]
                opening = '", '
            elif kind["type"] == "array" and kind["items"].get("type") == "string":
                self.parts += [f"{opening}{json.dumps(name)}: [", tuple(json.dumps(i) for i in kind["items"].get("enum", ()))]
                opening = "], "
            else:
                raise ValueError(
                    f"the property {name!r} is of type {kind['type']!r}; constrained answers hold texts and lists of ids"
                )
        self.parts.append(opening.removesuffix(", ") + "}")

    def next_characters(self, place: FormPlace) -> set[str] | None:
        """Return the characters that may come next: None for any character of a text, the empty set at the end."""
        if place.part == len(self.parts):
            return set()
        part = self.parts[place.part]
        if isinstance(part, str):
            return {part[len(place.written)]}
        if part is None:
            return None if len(place.written) < MAX_TEXT else {'"'}
        ways = {item[len(place.written)] for item in self._items(part, place) if item.startswith(place.written)}
        return ways if place.written else ways | {"]"}

    def step(self, place: FormPlace, character: str) -> FormPlace | None:
        """Return the place after a character; None if it may not come."""
        if place.part == len(self.parts):
            return None
        part = self.parts[place.part]
        written = place.written + character
        if isinstance(part, str):
            if not part.startswith(written):
                return None
            return FormPlace(place.part + 1) if written == part else FormPlace(place.part, written)
        if part is None:
            if character == '"':
                return self._leave(place, character)
            return FormPlace(place.part, written) if character.isprintable() and character != "\\" else None
        if not place.written and character == "]":
            return self._leave(place, character)
        for item in self._items(part, place):
            if item == written:
                return FormPlace(place.part, "", place.used | {item.removeprefix(", ")})
            if item.startswith(written):
                return FormPlace(place.part, written, place.used)
        return None

    def _leave(self, place: FormPlace, character: str) -> FormPlace | None:
        """Return the place after a slot, whose following fixed text begins with the character that ends the slot."""
        return self.step(FormPlace(place.part + 1), character)

    @staticmethod
    def _items(ids: Iterable[str], place: FormPlace) -> list[str]:
        separator = ", " if place.used else ""
        return [f"{separator}{item}" for item in ids if item not in place.used]


@dataclass
class _Node:
    """A node of the vocabulary's tree: the tokens that end here, and the characters that may follow."""

    tokens: list[int] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


class Vocabulary:
    """The texts of a tokenizer's tokens, as a tree. Special tokens and tokens that are parts of a character are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.end: int = tokenizer.eos_token_id
        self.texts = _token_texts(tokenizer)
        self._root = _Node()
        for token, text in self.texts.items():
            node = self._root
            for character in text:
                node = node.children.setdefault(character, _Node())
            node.tokens.append(token)
        self._wide: dict[tuple[Any, ...], Tensor] = {}

    def allowed(self, form: Form, place: FormPlace) -> Tensor:
        """Return the ids (N,) int64 of the tokens allowed at a place; only the end token if the form is complete."""
        if place.part == len(form.parts):
            return torch.tensor([self.end])
        if form.next_characters(place) is not None:
            return torch.tensor(self._walk(form, place))
        # Inside a free text nearly all tokens are allowed, whatever the text so far.
        follows = tuple(map(str, form.parts[place.part + 1 : place.part + 3]))
        if follows not in self._wide:
            self._wide[follows] = torch.tensor(self._walk(form, FormPlace(place.part)))
        return self._wide[follows]

    def _walk(self, form: Form, place: FormPlace) -> list[int]:
        found: list[int] = []
        open_places = [(self._root, place)]
        while open_places:
            node, at = open_places.pop()
            found += node.tokens
            characters = form.next_characters(at)
            for character in node.children if characters is None else characters & node.children.keys():
                following = form.step(at, character)
                if following is not None:
                    open_places.append((node.children[character], following))
        return found


class ConstrainedAnswers(LogitsProcessor):
    """Keeps each row of a batch within its own form. Make a new one for every `generate`."""

    def __init__(self, vocabulary: Vocabulary, schemas: Sequence[dict[str, Any]]) -> None:
        self._vocabulary = vocabulary
        self._forms = [Form(schema) for schema in schemas]
        self._places = [FormPlace(0)] * len(schemas)
        self._texts = [""] * len(schemas)
        self._length: int | None = None

    @property
    def texts(self) -> list[str]:
        """Return what each row has written, without its last token, which was not seen."""
        return list(self._texts)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores (B, V) of forbidden tokens to minus infinity, given the token ids (B, L) int64."""
        if self._length is not None:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._advance(row, token)
        self._length = input_ids.shape[1]
        allowed = torch.full_like(scores, float("-inf"))
        for row, (form, place) in enumerate(zip(self._forms, self._places, strict=True)):
            tokens = self._vocabulary.allowed(form, place).to(scores.device)
            allowed[row, tokens] = scores[row, tokens]
        return allowed

    def _advance(self, row: int, token: int) -> None:
        for character in self._vocabulary.texts.get(token, ""):
            following = self._forms[row].step(self._places[row], character)
            assert following is not None, f"token {token} was not allowed"
            self._places[row] = following
            self._texts[row] += character


def _token_texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Map each token to the text it writes in the middle of a text. Decoded alone, some tokenizers drop its leading blank."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    texts = tokenizer.batch_decode([[*anchor, token] for token in ordinary], clean_up_tokenization_spaces=False)
    pairs = ((token, text.removeprefix(before)) for token, text in zip(ordinary, texts, strict=True) if text.startswith(before))
    return {token: text for token, text in pairs if text and "\ufffd" not in text}
