"""The gate before stage 2: does the expert draw the attributes asked for, and leave out the refused ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cpo_ray.config import Config
from cpo_ray.core.files import read_json, write_json
from cpo_ray.core.prompts import Labels, condition_texts
from cpo_ray.core.statistics import Interval, bootstrap_interval, intersection_over_union
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import Domain
from cpo_ray.evaluation.generate import generate_many, generation_job
from cpo_ray.evaluation.rounds import gate_round
from cpo_ray.hierarchy import Hierarchy

LONG = 10**9  # in generation the pipeline's own tokenizer cuts texts

CONFIGURATIONS = {"A": "y + A_pos, A_neg as negative prompt", "B": "y + A_pos", "C": "y + A_pos + A_neg"}


@dataclass(frozen=True)
class Obedience:
    """How well the expert obeys, per configuration A, B, C of Table S6: intersection over union."""

    positive: dict[str, Interval]
    negative: dict[str, Interval]

    @property
    def gap(self) -> float:
        """IoU_neg(C) - IoU_neg(A): negatives must appear when asked for, and stay away when refused."""
        return self.negative["C"].mean - self.negative["A"].mean

    def table(self) -> str:
        """Return one line per configuration."""
        lines = ["configuration                              IoU_pos  IoU_neg"]
        lines += [
            f"{key}: {meaning:<40}{self.positive[key].mean:.2f}     {self.negative[key].mean:.2f}"
            for key, meaning in CONFIGURATIONS.items()
        ]
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Write it for `read`."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Obedience:
        """Read what `save` wrote."""
        sides = read_json(file)
        return cls(**{side: {key: Interval(**value) for key, value in values.items()} for side, values in sides.items()})


def measure_obedience(config: Config, dataset: AnnotatedDataset, tree: Hierarchy, adapter: Path, domain: Domain) -> Obedience:
    """Ask the expert for the labels of validation pictures in the three ways of Table S6, and measure what appears."""
    asked = gate_round(config, dataset)
    requests, seeds = asked.requests, asked.seeds
    texts = [condition_texts(r, tree, lambda _: 0, LONG)[0] for r in requests]
    positive = [t.positive for t in texts]
    jobs = {
        "A": generation_job(config, adapter, positive, seeds, [t.negative for t in texts]),
        "B": generation_job(config, adapter, positive, seeds),
        "C": generation_job(config, adapter, [t.all for t in texts], seeds),
    }
    pictures = generate_many(jobs, config.evaluation)
    found = {key: domain.annotate(made, asked.prompts) for key, made in pictures.items()}

    def agreement(key: str, side: str) -> Interval:
        pairs: Sequence[tuple[Labels, object]] = list(zip(requests, found[key], strict=True))
        return bootstrap_interval([intersection_over_union(getattr(r, side), getattr(f, side)) for r, f in pairs], seed=0)

    return Obedience(*({key: agreement(key, f"{side}_ids") for key in CONFIGURATIONS} for side in ("positive", "negative")))
