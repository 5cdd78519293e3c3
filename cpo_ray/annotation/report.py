"""Counts of an annotation run, and their text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from cpo_ray.annotation.asking.annotator import Effort, Outcome
from cpo_ray.config.annotation import AgentSettings, AnnotationConfig
from cpo_ray.core.progress import in_words


@dataclass
class AnnotationReport:
    """The pictures listed, annotated and set aside (by kind of reason), the questions, and what was dropped from answers.

    `unlisted` counts the files and rows that could not even be listed as pictures, by kind of reason. `told` says which columns
    were read, and which published splits are kept.
    """

    config: AnnotationConfig
    pictures: int
    dry_run: bool
    unlisted: Counter[str] = field(default_factory=Counter)
    told: str = ""
    annotated: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    effort: Effort = field(default_factory=Effort)
    seconds: float = 0.0

    def count(self, outcome: Outcome) -> None:
        """Add one picture's outcome."""
        if outcome.problem:
            self.set_aside[outcome.kind] += 1
        else:
            self.annotated += 1
        self.dropped.update(outcome.dropped)
        self.effort.add(outcome.effort)

    @property
    def done(self) -> int:
        """Number of pictures with an outcome."""
        return self.annotated + self.set_aside.total()

    @property
    def cost(self) -> float:
        """Cost in the currency of the back end's prices; 0 without prices."""
        return self.config.annotation.back_end.cost(self.effort.tokens_in, self.effort.tokens_out)

    @property
    def note(self) -> str:
        """The text after the pictures in the progress line."""
        parts = [f"{self.effort.asked / max(self.seconds, 1e-9):.1f} questions/s", self._tokens]
        return ", ".join([*parts, f"{self.set_aside.total()} set aside"])

    @property
    def _tokens(self) -> str:
        price = f" ({self.cost:.2f})" if self.cost else ""
        return f"{in_short(self.effort.tokens_in + self.effort.tokens_out)} tokens{price}"

    def summary(self) -> str:
        """Return the counts as a few lines for a terminal."""
        effort, aside = self.effort, self.set_aside + self.unlisted
        listed = [self.told] if self.told else []
        reasons = f" ({', '.join(f'{kind}: {count}' for kind, count in aside.most_common())})" if aside else ""
        if self.dry_run:
            lines = [
                f"{self.pictures} pictures: {self.annotated} can be annotated, {aside.total()} cannot{reasons}",
                *listed,
                f"{effort.asked} questions to ask, {effort.known} answered already",
                spoken(effort, self.config.annotation),
            ]
            return "\n".join(lines)
        lines = [
            f"{self.annotated} pictures annotated, {aside.total()} set aside{reasons}",
            *listed,
            f"{effort.asked} questions asked, {effort.known} answered before; "
            f"{effort.calls} calls, {effort.calls - effort.asked} of them retries; {self._tokens}",
        ]
        if self.dropped:
            lines.append("left out of the answers: " + ", ".join(f"{kind} {n}" for kind, n in self.dropped.most_common()))
        if aside:
            lines.append(f"{self.config.annotation.output / 'quarantine.jsonl'} says why, picture by picture")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the counts for other programs."""
        counts: dict[str, Any] = {
            "pictures": self.pictures,
            "annotated": self.annotated,
            "set_aside": dict(self.set_aside + self.unlisted),
            "dropped": dict(self.dropped),
            **asdict(self.effort),
            "cost": self.cost,
            "seconds": round(self.seconds, 1),
        }
        return json.dumps(counts, indent=1) + "\n"


def spoken(effort: Effort, agent: AgentSettings) -> str:
    """Return what questions will take: tokens, their price if they have one, and the time at the agent's stated rate."""
    cost, rate = agent.back_end.cost(effort.tokens_in, effort.tokens_out), agent.questions_per_second
    tokens = f"about {in_short(effort.tokens_in)} tokens in and {in_short(effort.tokens_out)} out"
    price = f", which cost about {cost:.2f}" if cost else ""
    return f"{tokens}{price}, and {in_words(effort.asked / rate)} at {rate:g} questions/s (questions_per_second)"


def in_short(number: int) -> str:
    """Format 12345 as 12.3k."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)
