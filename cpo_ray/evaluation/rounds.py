"""Who draws how many pictures of which prompts from which seeds: one table, so that nothing is tuned on what counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from cpo_ray.config import Config
from cpo_ray.core.prompts import Labels
from cpo_ray.core.splits import Split
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import Domain, requests_of

Purpose = Literal["gate", "samples", "validation", "evaluation"]

#: Purpose → the split that prompts come from, and the seed of the first picture's noise. Those of the evaluation, which counts,
#: start at `evaluation.seed`; no other purpose comes near any of its numbers.
TABLE: dict[Purpose, tuple[Split, int | None]] = {
    "gate": ("validation", 50_000),
    "samples": ("validation", 60_000),
    "validation": ("validation", 70_000),
    "evaluation": ("test", None),
}
#: The most pictures of the gate, per configuration of Table S6: to be measured, and to be looked at by people alone.
GATE_PICTURES, LOOKED_AT = 48, 12


@dataclass(frozen=True)
class Round:
    """Pictures to be drawn: what is asked for in each, and the seed of its noise."""

    requests: tuple[Labels, ...]
    first_seed: int

    @property
    def prompts(self) -> tuple[str, ...]:
        """The content prompts y."""
        return tuple(request.prompt for request in self.requests)

    @property
    def seeds(self) -> range:
        """One seed per picture."""
        return range(self.first_seed, self.first_seed + len(self.requests))


def gate_round(config: Config, dataset: AnnotatedDataset, most: int) -> Round:
    """The gate asks for the labels of at most so many pictures that the expert has not seen, good and bad."""
    return _round(config, "gate", min(most, config.evaluation.pictures), requests_of(dataset, TABLE["gate"][0]))


def samples_round(config: Config, dataset: AnnotatedDataset) -> Round:
    """Samples beside a training ask for the same kind of pictures."""
    return _round(config, "samples", config.evaluation.samples, requests_of(dataset, TABLE["samples"][0]))


def validation_round(config: Config, dataset: AnnotatedDataset, domain: Domain, count: int) -> Round:
    """A sweep chooses by prompts of the domain that are neither trained on nor counted in the end."""
    return _round(config, "validation", count, domain.requests(TABLE["validation"][0], dataset))


def evaluation_round(config: Config, dataset: AnnotatedDataset, domain: Domain) -> Round:
    """The evaluation counts prompts of the domain that nothing was trained or tuned on."""
    return _round(config, "evaluation", config.evaluation.pictures, domain.requests(TABLE["evaluation"][0], dataset))


def read_prompts(config: Config, dataset: AnnotatedDataset, domain: Domain, drawn: int | None) -> Counter[str]:
    """Return how many pictures of each prompt the domain will read, at most.

    They are those of the gate in three configurations, and those of every model of the evaluation, or the `drawn` pictures of a
    sweep, whose prompts are counted in turn.
    """
    found = Counter(3 * gate_round(config, dataset, GATE_PICTURES).prompts)
    if drawn is None:
        models = 2 + len(config.preference.trainings)  # with the base and the expert
        return found + Counter(models * evaluation_round(config, dataset, domain).prompts)
    return found + Counter(validation_round(config, dataset, domain, drawn).prompts)


def shared_noise(config: Config) -> str | None:
    """Say, in a sentence, which two purposes would draw from the same noise; None if no two would."""
    most = {
        "gate": GATE_PICTURES,
        "samples": config.evaluation.samples,
        "validation": config.sweep.pictures if config.sweep else 0,
        "evaluation": config.evaluation.pictures,
    }
    seeds = {purpose: range(_first_seed(config, purpose), _first_seed(config, purpose) + most[purpose]) for purpose in TABLE}
    for (one, first), (other, second) in combinations(seeds.items(), 2):
        if max(first.start, second.start) < min(first.stop, second.stop):
            return (
                f"the {one} would draw from the noise of seeds {first.start} to {first.stop - 1}, and the {other} from that of "
                f"{second.start} to {second.stop - 1}; choose another evaluation.seed or fewer pictures, so that they share none"
            )
    return None


def _round(config: Config, purpose: Purpose, count: int, requests: Sequence[Labels]) -> Round:
    return Round(tuple(requests[i % len(requests)] for i in range(count)), _first_seed(config, purpose))


def _first_seed(config: Config, purpose: Purpose) -> int:
    _, seed = TABLE[purpose]
    return config.evaluation.seed if seed is None else seed
