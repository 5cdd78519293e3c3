"""Pictures with noise: the part of a target shard that no frozen denoiser is needed for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from cpo_ray.config import Model, Pictures
from cpo_ray.core.diffusion import DiffusionProcess
from cpo_ray.core.picture_size import PictureSize
from cpo_ray.core.plan import Item
from cpo_ray.core.randomness import counter_generator
from cpo_ray.data.buckets import Bucket, bucket_of, encoded_together
from cpo_ray.data.picture import CENTER, PictureError, decode, fit
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.models.base import Conditioning, Encoders, Family


@dataclass(frozen=True, eq=False)
class NoisyPictures:
    """One picture of each of B samples: x_t and the denoising target (B, C, h, w) float16, timesteps (B,), and what the model is
    told of their sizes (B, …).
    """

    x_t: Tensor
    target: Tensor
    timestep: Tensor
    micro: Conditioning


class Noising:
    """Fits pictures to their bucket, encodes them, and adds the noise of their items, a function of the seed."""

    def __init__(self, family: Family, encoders: Encoders, dataset: AnnotatedDataset, model: Model, pictures: Pictures) -> None:
        self._family, self._encoders, self._dataset = family, encoders, dataset
        self._model, self._pictures = model, pictures
        self._processes: dict[int, DiffusionProcess] = {}

    def __call__(
        self, items: Sequence[Item], names: Sequence[str], images: Sequence[bytes], seed: int, device: torch.device
    ) -> NoisyPictures:
        """Return the pictures `names` with the noise and the time of the `items`, in the bucket of the items' own pictures.

        The two pictures of a pair so have the same noise. `images` are the encoded pictures. Raises PictureError, naming the
        picture, for one that cannot be decoded or is too small.
        """
        (bucket,) = {self._bucket(item) for item in items}  # samples of one shard have the same shape
        process = self._process(bucket)
        assert len(items) == len(names) == len(images)
        # PIL releases the interpreter lock. Ray tells torch how many threads this actor may have.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            fitted = list(threads.map(self._fit, items, names, images, repeat(bucket), repeat(seed)))
        pictures = torch.stack([picture for picture, _ in fitted])
        x0 = torch.cat([self._encoders.encode_pictures(part) for part in pictures.split(encoded_together(bucket))])
        noise = torch.stack([_noise(seed, item, x0.shape[1:]) for item in items]).to(device)
        uniform = [counter_generator(seed, *item, "timestep").random() for item in items]
        timestep = process.timestep(torch.tensor(uniform, dtype=torch.float64)).to(device)
        x_t, target = process.add_noise(x0, noise, timestep), process.target(x0, noise, timestep)
        micro = self._encoders.micro_conditioning([size for _, size in fitted])
        return NoisyPictures(x_t.to(torch.float16), target.to(torch.float16), timestep, micro)

    def _bucket(self, item: Item) -> Bucket:
        (width, height), resolution = self._dataset.size(item.sample_id), self._model.resolution
        bucket = bucket_of((width, height), resolution, self._pictures)
        if bucket is None:
            raise PictureError(
                f"sample {item.sample_id!r}: {width} x {height} pixels are too small for resolution {resolution}; "
                "leave it out, or scale it up with data.pictures.upscale = true"
            )
        return bucket

    def _process(self, bucket: Bucket) -> DiffusionProcess:
        """Return the diffusion process; a base may draw its times by the number of tokens."""
        if bucket.resolution not in self._processes:
            model = self._model.model_copy(update={"resolution": bucket.resolution})
            self._processes[bucket.resolution] = self._family.load_process(model)
        return self._processes[bucket.resolution]

    def _fit(self, item: Item, name: str, image: bytes, bucket: Bucket, seed: int) -> tuple[Tensor, PictureSize]:
        """(3, height, width) float32 in [-1, 1]."""
        place = CENTER
        if self._pictures.crop == "random":
            across, down = counter_generator(seed, *item, "crop").random(2)
            place = (across, down)
        try:
            pixels, size = fit(decode(image), (bucket.width, bucket.height), place)
        except PictureError as error:
            raise PictureError(f"sample {name!r}: {error}") from error
        return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1, size


def _noise(seed: int, item: Item, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(counter_generator(seed, *item, "noise").standard_normal(tuple(shape), dtype="float32"))
