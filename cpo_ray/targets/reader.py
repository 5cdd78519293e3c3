"""Read batches of the plan from the rows of target shards."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.core.files import read_json
from cpo_ray.core.plan import Batch, Item
from cpo_ray.core.schema import PICTURE_PREFIXES
from cpo_ray.models.base import Conditioning
from cpo_ray.objectives import ExpertDifferences, Objective, View, ViewOutputs
from cpo_ray.targets.store import Items, TargetStore, TargetStoreError

_DIFFERENCES = ExpertDifferences.__dataclass_fields__.keys()
# An open shard is a memory map and a parsed header. After the first epoch a batch reads single rows of many shards.
_OPEN_SHARDS = 256
# A shard that is damaged again, each time it was computed, lies on a disk that nobody should train from.
_MOST_DAMAGES = 3


class TargetsUnavailable(RuntimeError):
    """A shard did not come: the producer's own sentence, or a time-out."""


def check_views(objective: Objective[Any]) -> None:
    """Raise TargetStoreError for an objective with a view of a picture or text that target shards do not hold."""
    for view in objective.views:
        if view.picture >= len(PICTURE_PREFIXES) or view.text > 0:
            raise TargetStoreError(
                f"target shards hold two pictures and one text of each sample, so there is no {view}; "
                f"choose an objective without this view, which {objective.name!r} has"
            )
    if objective.pictures > 1 and objective.calls_expert:
        raise TargetStoreError(
            f"the expert's outputs are computed for one picture of each sample, and objective {objective.name!r} wants them for "
            "two; choose one that needs target and reference alone"
        )


@dataclass(frozen=True, eq=False)
class PictureTargets:
    """One picture of each of B samples.

    x_t (B, C, h, w) float32; micro (B, …) float32, what the model is told beside the text; target and reference
    (B, C, h, w) float32 where the shards hold them.
    """

    x_t: Tensor
    micro: Conditioning
    target: Tensor | None
    reference: Tensor | None


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """B samples as one training step reads them, all but the weights on one device.

    weights (B,) float32, 0 for padding; pictures, the one or two of a sample; timestep (B,) and text (B, …) float32 under the
    family's names, which all pictures of a sample share; expert where the shards hold its outputs.
    """

    items: Items
    weights: Tensor
    pictures: tuple[PictureTargets, ...]
    timestep: Tensor
    text: Conditioning
    expert: ExpertDifferences | None

    def inputs(
        self, dtype: torch.dtype, views: tuple[View, ...] = (View(0, 0),), count: int | None = None
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """Return x_t, timestep and conditioning of the first `count` samples, as `Family.predict` takes them, in `dtype`.

        With V views there are V rows for every sample, all samples of the first view first.
        """
        shown = [self.pictures[view.picture] for view in views]

        def rows(values: list[Tensor]) -> Tensor:
            return values[0][:count] if len(values) == 1 else torch.cat([each[:count] for each in values])

        text = {name: rows([values] * len(views)) for name, values in self.text.items()}
        micro = {name: rows([picture.micro[name] for picture in shown]) for name in shown[0].micro}
        return rows([picture.x_t for picture in shown]).to(dtype), rows([self.timestep] * len(views)), text | micro

    def outputs(self, predictions: Tensor, objective: Objective[Any], settings: ObjectiveSettings) -> tuple[ViewOutputs, ...]:
        """Return what the objective sees of each view, given the predictions (V · B, C, h, w) for `inputs`."""
        each = zip(predictions.chunk(len(objective.views)), objective.views, strict=True)
        shown = [(prediction, self.pictures[view.picture]) for prediction, view in each]
        return tuple(
            objective.outputs(prediction, picture.target, picture.reference, self.expert, settings)
            for prediction, picture in shown
        )


class TargetReader:
    """Reads batches of `shards`. It waits for a shard that is still being produced and adds up the time in `waited_seconds`.

    The first time that it opens a shard, it compares the checksum. A damaged one is set aside, and waited for like one that was
    never there. `run_id` names the producer whose failure ends the wait.
    """

    def __init__(self, store: TargetStore, shards: Sequence[Items], timeout_seconds: float, run_id: str) -> None:
        self.waited_seconds = 0.0
        self._store = store
        self._shards = shards
        self._timeout_seconds = timeout_seconds
        self._failure_marker = store.failure_marker(run_id)
        self._places = {item: (number, row) for number, items in enumerate(shards) for row, item in enumerate(items)}
        self._opened: OrderedDict[int, safe_open] = OrderedDict()
        self._verified: set[int] = set()

    def batch(self, batch: Batch, device: torch.device | None = None) -> TargetBatch:
        """Return the targets of a batch of the plan, on `device` or on the CPU.

        Raises TargetsUnavailable if the producer has failed or a shard does not come in time, and TargetStoreError for one that
        is damaged each time it was computed.
        """
        samples = [self._sample(item) for item in batch.items]
        # A shard's texts are as long as its longest one. Families mark missing tokens with rows of zeros.
        stacked = {
            name: pad_sequence([sample[name] for sample in samples], batch_first=True)
            if name.startswith("text.")
            else torch.stack([sample[name] for sample in samples])
            for name in samples[0]
        }
        if device is not None and device.type == "cuda":
            # Sent as stored, which is half the bytes of float32, while the device still computes; this thread does not wait.
            stacked = {name: values.pin_memory().to(device, non_blocking=True) for name, values in stacked.items()}
        present = stacked.keys() >= _DIFFERENCES
        return TargetBatch(
            items=batch.items,
            weights=torch.tensor(batch.weights, dtype=torch.float32),
            pictures=tuple(_picture(stacked, prefix) for prefix in PICTURE_PREFIXES if f"{prefix}x_t" in stacked),
            timestep=stacked["timestep"],
            text=_named(stacked, "text."),
            expert=ExpertDifferences(**{name: stacked[name] for name in _DIFFERENCES}) if present else None,
        )

    def _sample(self, item: Item) -> dict[str, Tensor]:
        """Return the row of every tensor that belongs to one item; nothing else is read."""
        assert item in self._places, f"{item} is in no shard of this reader"
        number, row = self._places[item]
        shard = self._open(number)
        names: list[str] = shard.keys()
        prompt = int(shard.get_slice("prompt_index")[row : row + 1])
        return {name: shard.get_slice(name)[_one(prompt if name.startswith("text.") else row)][0] for name in names}

    def _open(self, number: int) -> safe_open:
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            self._opened[number] = self._intact(self._shards[number], verify=number not in self._verified)
            self._verified.add(number)
            if len(self._opened) > _OPEN_SHARDS:
                self._opened.popitem(last=False)
        return self._opened[number]

    def _intact(self, items: Items, verify: bool) -> safe_open:
        """Return the shard as it was written. A damaged one is set aside until its producer has computed it again."""
        path, damages = self._store.path(items), 0
        while True:
            self._wait_for(path)
            try:
                seen = path.stat()
                return self._store.open(items, verify=verify)
            except FileNotFoundError:
                continue  # another rank has just set it aside
            except TargetStoreError:
                damages += self._store.set_aside(path, seen)
                if damages == _MOST_DAMAGES:
                    raise

    def _wait_for(self, path: Path) -> None:
        started = time.monotonic()
        pause = 0.05
        while not path.exists():
            waited = time.monotonic() - started
            if self._failure_marker.exists():
                raise TargetsUnavailable(read_json(self._failure_marker)["sentence"])
            if waited > self._timeout_seconds:
                raise TargetsUnavailable(
                    f"no target shard came at {path} within {self._timeout_seconds:g} s; look for what holds the producer up, "
                    "or give it longer with targets.timeout_seconds"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)
        self.waited_seconds += time.monotonic() - started


def _picture(stacked: Mapping[str, Tensor], prefix: str) -> PictureTargets:
    target, reference = stacked.get(f"{prefix}target"), stacked.get(f"{prefix}reference")
    return PictureTargets(
        x_t=stacked[f"{prefix}x_t"].float(),
        micro=_named(stacked, f"{prefix}micro."),
        target=None if target is None else target.float(),
        reference=reference,
    )


def _named(stacked: Mapping[str, Tensor], prefix: str) -> Conditioning:
    """Return the tensors whose names begin with the prefix, without it, in float32."""
    return {name.removeprefix(prefix): values.float() for name, values in stacked.items() if name.startswith(prefix)}


def _one(row: int) -> slice:
    return slice(row, row + 1)
