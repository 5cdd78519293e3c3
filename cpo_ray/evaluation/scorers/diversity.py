"""Does a model still draw many different pictures? Their spread for one prompt, and how much of the good ones they cover."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from cpo_ray.config import Config
from cpo_ray.config.evaluation import ModelScorerSettings
from cpo_ray.core.statistics import Interval, bootstrap_interval, jackknife_interval
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.scorers.base import Drawn, ModelScorer, NotScored, SetScorer
from cpo_ray.evaluation.scorers.fid import ReferenceSettings, reference_pictures

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.base import Reader, WeightFiles

#: Rows of a table of distances that exist at a time.
_BLOCK = 512


class SpaceSettings(ModelScorerSettings):
    """Where pictures are compared."""

    space: Literal["clip", "pixels"] = "clip"
    """CLIP's space, where different things are far apart, or pixels at 32 × 32, which need no weights."""
    weights: str = "openai/clip-vit-large-patch14"


class InSpace(ModelScorer, SetScorer):
    """A scorer of distances between pictures in CLIP's space or in pixels."""

    settings = SpaceSettings
    told: SpaceSettings
    better = "higher"
    licence = 'MIT; none with space = "pixels"'
    size = '1.7 GB; none with space = "pixels"'
    reads_prompts = False

    def weights(self, *, download: bool = True) -> WeightFiles | None:
        """Those of CLIP; pixels need none."""
        return None if self.told.space == "pixels" else super().weights(download=download)

    def open_reader(self) -> Reader:
        """Load CLIP, or nothing."""
        from cpo_ray.evaluation.scorers.readers.base import PixelReader, find_weights
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, load_clip_pictures

        if self.told.space == "pixels":
            return PixelReader()
        weights = find_weights(self.told)
        return load_clip_pictures(weights.tensors(), weights, VIT_L)

    def published_reader(self) -> Reader:
        """The half of ViT-L/14 that sees pictures, or nothing."""
        from cpo_ray.evaluation.scorers.readers.base import PixelReader
        from cpo_ray.evaluation.scorers.readers.clip import VIT_L, published_clip_pictures

        return PixelReader() if self.told.space == "pixels" else published_clip_pictures(VIT_L)


class Diversity(InSpace):
    """The mean distance between two pictures of one prompt: 1 - cosine in CLIP, root mean squared difference in pixels."""

    name = "diversity"
    title = "diversity"
    meaning = "mean distance between two pictures of one prompt"
    caution = "Diversity that falls while scores rise is the sign of a collapse. Noise is diverse, too."
    decimals = 4

    def distance(self, drawn: Drawn) -> Interval:
        """The mean over prompts with a bootstrap interval over prompts. Raises NotScored where no prompt has two pictures."""
        assert drawn.readings is not None, "pictures are read before they are scored"
        places = defaultdict(list)
        for place, prompt in enumerate(drawn.prompts):
            places[prompt].append(place)
        spreads = [self._spread(drawn.readings[of_one].astype(np.float64)) for of_one in places.values() if len(of_one) > 1]
        if not spreads:
            raise NotScored(
                f"each of the {len(drawn.prompts)} pictures has a prompt of its own, so none has a second to compare with; raise "
                "evaluation.pictures above the number of prompts"
            )
        return bootstrap_interval(spreads, seed=0)

    def _spread(self, rows: NDArray[np.float64]) -> float:
        first, second = np.triu_indices(len(rows), 1)
        if self.told.space == "pixels":
            return float(np.sqrt(((rows[first] - rows[second]) ** 2).mean(1)).mean())
        return float((1 - (rows[first] * rows[second]).sum(1)).mean())


class CoverageSettings(SpaceSettings, ReferenceSettings):
    """How near is near."""

    neighbours: PositiveInt = 5
    """A good picture is covered if a drawn one is at least as near as its neighbour of this rank among the good ones."""


class Coverage(InSpace):
    """The share of good pictures that have a drawn one in their neighbourhood (Naeem et al. 2020, arXiv:2002.09797, Eq. 6)."""

    settings = CoverageSettings
    told: CoverageSettings
    name = "coverage"
    title = "coverage"
    meaning = "share of good pictures that have a drawn one near"
    caution = "Coverage grows with the number of pictures, so compare it within this report only."
    decimals = 3

    def reference(self, config: Config) -> Sequence[Picture]:
        """The folder's pictures, or the good annotated ones."""
        return reference_pictures(config, self.told)

    def distance(self, drawn: Drawn) -> Interval:
        """The share with a jackknife interval over the drawn pictures. Raises NotScored for too few good pictures."""
        assert drawn.readings is not None and drawn.reference is not None, "pictures are read before they are scored"
        good, made, rank = drawn.reference.astype(np.float64), drawn.readings.astype(np.float64), self.told.neighbours
        if len(good) <= rank:
            raise NotScored(
                f"there are {len(good)} pictures to compare with, and neighbours = {rank} takes more; give a larger reference"
            )
        parts = min(20, len(made))
        near = np.zeros((len(good), parts), dtype=bool)
        for start in range(0, len(good), _BLOCK):
            rows = good[start : start + _BLOCK]
            # Every picture is its own nearest neighbour.
            radius = np.partition(_squared(rows, good), rank, axis=1)[:, rank, None]
            inside = _squared(rows, made) <= radius
            for part in range(parts):
                near[start : start + _BLOCK, part] = inside[:, part::parts].any(1)
        without = [float(np.delete(near, part, axis=1).any(1).mean()) for part in range(parts)]
        found = jackknife_interval(float(near.any(1).mean()), without)
        return Interval(found.mean, found.low, min(found.high, 1.0))


def _squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) squared distances."""
    squared: NDArray[np.float64] = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
    return squared
