"""FID (Heusel et al. 2017, arXiv:1706.08500): how far are the drawn pictures, as a set, from good ones?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cpo_ray.config import Config
from cpo_ray.config.evaluation import ModelScorerSettings
from cpo_ray.core.statistics import Gaussian, Interval, frechet_interval
from cpo_ray.data.shards import AnnotatedDataset, DataError
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.pictures import in_dataset, in_folder
from cpo_ray.evaluation.scorers.base import Drawn, ModelScorer, NotScored, SetScorer

if TYPE_CHECKING:
    from cpo_ray.evaluation.scorers.readers.inception import InceptionReader


class ReferenceSettings(ModelScorerSettings):
    """What drawn pictures are compared with, as a set."""

    reference: Path | None = None
    """A folder of pictures. Without one it is the annotated pictures, with at most `most_negatives`."""
    most_negatives: int = Field(default=0, ge=0)
    """Annotated pictures with more negative attributes are no reference."""


class FIDSettings(ReferenceSettings):
    """Inception v3 in safetensors, under torchvision's names, with or without the classifier."""

    weights: str = ""


class FID(ModelScorer, SetScorer):
    """Squared Fréchet distance between Inception features of the drawn pictures and of the reference, in float64."""

    settings = FIDSettings
    told: FIDSettings
    name = "fid"
    title = "FID"
    better = "lower"
    meaning = "Fréchet distance between Inception features of drawn and of good pictures"
    caution = (
        "FID falls with the number of pictures and depends on the reference, so compare it within this report only. "
        "Published ones stand on thousands of pictures."
    )
    decimals = 2
    licence = "Apache-2.0"
    size = "95 MB"
    reads_prompts = False

    def open_reader(self) -> InceptionReader:
        """Load Inception v3."""
        import torch

        from cpo_ray.evaluation.scorers.readers.base import find_weights, load_into
        from cpo_ray.evaluation.scorers.readers.inception import InceptionReader, feature_names

        weights = find_weights(self.told)
        with torch.device("meta"):
            reader = InceptionReader()
        load_into(reader, feature_names(weights.tensors()), weights.source)
        return reader.eval()

    def published_reader(self) -> InceptionReader:
        """Inception v3."""
        from cpo_ray.evaluation.scorers.readers.inception import InceptionReader

        return InceptionReader()

    def reference(self, config: Config) -> Sequence[Picture]:
        """The folder's pictures, or the good annotated ones."""
        return reference_pictures(config, self.told)

    def distance(self, drawn: Drawn) -> Interval:
        """The distance with a jackknife interval over the drawn pictures."""
        assert drawn.readings is not None and drawn.reference is not None, "pictures are read before they are scored"
        try:
            return frechet_interval(drawn.readings, Gaussian.of(drawn.reference))
        except ValueError as error:
            raise NotScored(str(error)) from None


def reference_pictures(config: Config, told: ReferenceSettings) -> Sequence[Picture]:
    """The pictures that a scorer compares with. Raises NotScored where there are fewer than three."""
    if told.reference is not None:
        found, where = in_folder(told.reference), f"the folder {told.reference}"
    else:
        try:
            found = in_dataset(AnnotatedDataset.open(config.data.folder), told.most_negatives)
        except DataError as error:
            raise NotScored(f"its reference are annotated pictures: {error}") from None
        where = f"{config.data.folder}, counting those with at most {told.most_negatives} negative attributes,"
    if len(found) < 3:
        raise NotScored(
            f"{where} has {len(found)} pictures to compare with, and three are the least; raise most_negatives, or name a folder "
            "of good pictures with `reference`"
        )
    return found
