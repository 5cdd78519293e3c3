"""The embedded domain's measuring agent as a back end: it answers like a model, from the pixels of a toy picture."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cpo_ray.annotation.asking.questions import CONTENT, SHOWS, Question
from cpo_ray.annotation.back_ends.base import BackEnd, BackEndUnusable, Reply, Unanswered
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import BackEndSettings
from cpo_ray.domains.toy.agent import Measurement, measure


class MeasuringSettings(BackEndSettings):
    """The measuring agent needs to be told nothing."""

    model: Literal["toy"] = "toy"


class MeasuringBackEnd(BackEnd):
    """Measures a picture once and answers the questions about it one by one."""

    settings = MeasuringSettings

    def __init__(self, settings: MeasuringSettings, device: str) -> None:
        self._last: tuple[str, str] = ("", "")
        self._seen: Measurement | None = None

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        """Raises Unanswered for a picture of another size than the domain's, and BackEndUnusable for the
        question for a prompt.
        """
        if question.root_id == CONTENT:
            raise BackEndUnusable("the measuring agent reads attributes only; give the pictures prompts")
        if question.root_id == SHOWS:
            return Reply(shown_text(np.asarray(picture.pixels()), picture.prompt))
        if self._last != (picture.digest, picture.prompt):
            try:
                self._seen = measure(np.asarray(picture.pixels()), picture.prompt)
            except ValueError as error:
                raise Unanswered(str(error), calls=0) from None
            self._last = (picture.digest, picture.prompt)
        assert self._seen is not None
        return Reply(answer_text(self._seen, question))


def shown_text(pixels: NDArray[np.uint8], prompt: str) -> str:
    """Return what the domain's judge recognises of a prompt in a picture (64, 64, 3), in the required form."""
    from cpo_ray.domains.toy.scorers import recognised  # torch, which whoever only reads a configuration needs not

    found = recognised([pixels], [prompt])[0]
    parts = ("shape", "color", "ground")
    return json.dumps({"named": parts, "missing": [part for part, there in zip(parts, found, strict=True) if not there]})


def answer_text(seen: Measurement, question: Question) -> str:
    """Return the part of a measurement that answers one question, in the required form."""
    asked = set(question.attribute_ids)
    scalars = ", ".join(f"{name} {value:.3f}" for name, value in seen.scalars.items() if name in asked)
    answer = {
        "description": f"Measured: {scalars or 'nothing'}.",
        "sub_dimensions": list(question.sub_dimensions),
        "positive_ids": [i for i in seen.positive_ids if i in asked],
        "negative_ids": [i for i in seen.negative_ids if i in asked],
    }
    return json.dumps({key: answer[key] for key in question.schema["properties"]})
