"""A back end of one's own: it praises every picture, as strictly as it is told to."""

from __future__ import annotations

import json

from pydantic import Field

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.back_ends.base import BackEnd, Reply
from cpo_ray.annotation.pictures import Picture
from cpo_ray.config.annotation import BackEndSettings


class PraiseSettings(BackEndSettings):
    """What no back end of the package is told."""

    model: str = "flattery-1"
    most: int = Field(default=1, ge=0)
    """It finds at most so many good attributes per question."""


class Praise(BackEnd):
    """Finds the first attributes that it is asked about, and nothing bad."""

    settings = PraiseSettings

    def __init__(self, settings: PraiseSettings, device: str) -> None:
        self._most = settings.most

    async def ask(self, picture: Picture, question: Question, complaint: str) -> Reply:
        answer = {
            "description": "Wonderful.",
            "sub_dimensions": list(question.sub_dimensions),
            "positive_ids": list(question.attribute_ids[: self._most]),
            "negative_ids": [],
        }
        return Reply(json.dumps({key: answer[key] for key in question.schema["properties"]}), tokens_in=100, tokens_out=10)
