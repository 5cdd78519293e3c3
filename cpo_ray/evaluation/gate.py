"""The gate before stage 2: does the expert draw the attributes asked for, and leave out the refused ones?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cpo_ray.config import Config
from cpo_ray.core.files import read_json, write_json
from cpo_ray.core.prompts import Labels, condition_texts
from cpo_ray.core.statistics import Interval, bootstrap_interval, intersection_over_union
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.domain import Domain, Picture
from cpo_ray.evaluation.generate import generate_many, generation_job
from cpo_ray.evaluation.rounds import GATE_PICTURES, LOOKED_AT, gate_round
from cpo_ray.hierarchy import Hierarchy

LONG = 10**9  # in generation the pipeline's own tokenizer cuts texts

CONFIGURATIONS = {"A": "y + A_pos, A_neg as negative prompt", "B": "y + A_pos", "C": "y + A_pos + A_neg"}


@dataclass(frozen=True, eq=False)
class GatePictures:
    """What the expert drew, by configuration of Table S6: picture i of each was asked for by requests[i], from the same noise.

    `found` are the labels that the domain has read from the pictures, None for one that it could not read; it is None altogether
    where nobody reads labels.
    """

    requests: tuple[Labels, ...]
    pictures: Mapping[str, Sequence[Picture]]
    found: Mapping[str, Sequence[Labels | None]] | None


@dataclass(frozen=True)
class Obedience:
    """How well the expert obeys, per configuration A, B, C of Table S6: intersection over union.

    `unread` counts the pictures that could not be read, where there are any; the others make the intervals.
    """

    positive: dict[str, Interval]
    negative: dict[str, Interval]
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """IoU_neg(C) - IoU_neg(A): negatives must appear when asked for, and stay away when refused."""
        return self.negative["C"].mean - self.negative["A"].mean

    def table(self) -> str:
        """Return one line per configuration."""
        lines = ["configuration                              IoU_pos  IoU_neg"]
        lines += [
            f"{key}: {meaning:<40}{self.positive[key].mean:.2f}     {self.negative[key].mean:.2f}"
            + (f"  ({self.unread[key]} pictures unread)" if key in self.unread else "")
            for key, meaning in CONFIGURATIONS.items()
        ]
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Write it for `read`."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Obedience:
        """Read what `save` wrote."""
        saved = read_json(file)
        good, bad = ({key: Interval(**value) for key, value in saved[side].items()} for side in ("positive", "negative"))
        return cls(good, bad, saved.get("unread", {}))

    @classmethod
    def of(cls, drawn: GatePictures) -> Obedience:
        """Measure it. Raises ValueError where nobody has read labels from the pictures."""
        if drawn.found is None:
            raise ValueError("obedience is the overlap of what is asked for and found, and nobody has looked at these pictures")
        pairs = {
            key: [(asked, seen) for asked, seen in zip(drawn.requests, drawn.found[key], strict=True) if seen is not None]
            for key in CONFIGURATIONS
        }

        def agreement(key: str, side: str) -> Interval:
            return bootstrap_interval(
                [intersection_over_union(getattr(asked, side), getattr(seen, side)) for asked, seen in pairs[key]], seed=0
            )

        good, bad = ({key: agreement(key, f"{side}_ids") for key in CONFIGURATIONS} for side in ("positive", "negative"))
        return cls(good, bad, {key: lost for key, read in pairs.items() if (lost := len(drawn.requests) - len(read))})


def draw_gate(config: Config, dataset: AnnotatedDataset, tree: Hierarchy, adapter: Path, domain: Domain) -> GatePictures:
    """Ask the expert for the labels of validation pictures in the ways of Table S6, and read from its pictures what appears.

    Where nobody reads labels, a few pictures of A and C are drawn for people to look at.
    """
    asked = gate_round(config, dataset, GATE_PICTURES if domain.reads_labels else LOOKED_AT)
    texts = [condition_texts(request, tree, lambda _: 0, LONG)[0] for request in asked.requests]
    positive = [text.positive for text in texts]
    jobs = {
        "A": generation_job(config, adapter, positive, asked.seeds, [text.negative for text in texts]),
        "B": generation_job(config, adapter, positive, asked.seeds),
        "C": generation_job(config, adapter, [text.all for text in texts], asked.seeds),
    }
    if not domain.reads_labels:
        del jobs["B"]
    pictures = generate_many(jobs, config.evaluation)
    found = {key: domain.annotate(made, asked.prompts) for key, made in pictures.items()} if domain.reads_labels else None
    return GatePictures(asked.requests, pictures, found)
