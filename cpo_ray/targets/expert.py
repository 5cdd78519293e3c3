"""The frozen models as one plain callable: items and their pictures in, the tensors of a whole target shard out.

Every input is rounded to its stored form *before* any model sees it. Training on a shard therefore equals running the frozen
models in the training step, and a student equal to the reference reproduces `reference`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cpo_ray.config import ConditionMixture, Model, Pictures
from cpo_ray.core.plan import Item
from cpo_ray.core.prompts import TEMPLATE_VERSION, ConditionTexts, Labels, condition_texts, stage_one_text
from cpo_ray.core.randomness import counter_generator
from cpo_ray.core.schema import PICTURE_PREFIXES
from cpo_ray.data.pairs import Losers
from cpo_ray.data.shards import SHARDS, AnnotatedDataset
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.models.adapters.reading import SETTINGS
from cpo_ray.models.base import DTYPES, Family
from cpo_ray.models.bases.source import base_source
from cpo_ray.targets.frozen import FrozenDenoisers, Texts
from cpo_ray.targets.images import pictures_of
from cpo_ray.targets.noising import Noising
from cpo_ray.targets.store import FrozenInputs, Kind, TargetStore, content_digest, frozen_fingerprint, text_digest

_BASE_SUFFIXES = (".safetensors", ".json", ".txt")  # weights, configs and tokenizers of a pipeline folder


@dataclass(frozen=True)
class ExpertSpec:
    """What an `Expert` is built from: small, picklable, and complete.

    kind "supervised" gives noisy latents and their ground truth for one text per item: a draw from `mixture` (stage 1), or the
    content prompt without one. kind "reference" adds the output of the reference. kind "expert" needs `adapter` and adds those of
    θ1, too. With `losers` a sample is a pair of pictures under the text of the first, which stands in the item; kind "expert" has
    none.
    `forward_batch` bounds the samples per forward of a denoiser where a whole shard does not fit into the device's memory. The
    fields after it are those of `config.Targets`. `pictures` says at which sizes pictures are taken.
    """

    kind: Kind
    model: Model
    dataset: Path
    hierarchy: Path
    seed: int
    adapter: Path | None = None
    mixture: ConditionMixture | None = None
    forward_batch: int | None = None
    compile: bool = False
    float8: bool = False
    vae: Path | None = None
    offload_text_encoders: bool = False
    device: str = "cpu"
    pictures: Pictures = field(default_factory=Pictures)
    losers: Losers | None = None

    def __post_init__(self) -> None:
        if (self.kind == "expert") != (self.adapter is not None):
            raise ValueError(
                f"targets of kind {self.kind!r} with adapter {self.adapter}; kind 'expert' needs one, the others have none"
            )
        if self.kind != "supervised" and self.mixture is not None:
            raise ValueError(f"targets of kind {self.kind!r} use fixed conditions; give no mixture")
        if self.kind == "expert" and self.losers is not None:
            raise ValueError("targets of kind 'expert' are of one picture; give no losers")
        if self.float8 and self.model.dtype != "bfloat16":
            raise ValueError(f"targets.float8 with model.dtype = {self.model.dtype!r}; the rest must be in 'bfloat16'")

    @property
    def precision(self) -> str:
        """How the denoisers compute, where it changes their outputs."""
        faster = [name for name in ("compile", "float8") if getattr(self, name)] if self.kind == "expert" else []
        return ", ".join([self.model.dtype, *faster])


def frozen_inputs(spec: ExpertSpec) -> FrozenInputs:
    """Return everything that decides the bytes of the spec's shards.

    Raises ValueError for a hub id without a revision, since the weights behind it may change while the address stays.
    """
    base = base_source(spec.model)
    if Path(base).is_dir():
        base = content_digest(Path(base), _BASE_SUFFIXES)
    elif spec.model.revision is None:
        raise ValueError(
            f"model.base = {base!r} is not a folder here, and as a hub id it needs model.revision, which addresses the targets; "
            "give the commit's hash"
        )
    # Targets made before texts could have several parts keep their address.
    chunks = f", {spec.model.text_chunks} chunks" if spec.model.text_chunks > 1 else ""
    files, pictures = sorted(spec.dataset.glob(SHARDS)), spec.pictures
    return FrozenInputs(
        kind=spec.kind,
        base=f"{base}@{spec.model.revision}" + (f" with VAE {content_digest(spec.vae)}" if spec.vae else ""),
        adapter=None if spec.adapter is None else _adapter_digest(spec.adapter),
        dataset=_dataset_fingerprint(spec.dataset, tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)),
        hierarchy=load_hierarchy(spec.hierarchy).content_hash,
        texts=f"template {TEMPLATE_VERSION}, {'content' if spec.mixture is None else spec.mixture.model_dump_json()}" + chunks,
        resolution=spec.model.resolution,
        dtype=spec.precision,
        flow=spec.model.flow.model_dump_json(),
        seed=spec.seed,
        forward_batch=spec.forward_batch,
        pictures=None if (pictures.buckets, pictures.crop) == ("square", "center") else pictures.model_dump_json(),
        pairs=None if spec.losers is None else text_digest(json.dumps(sorted(spec.losers.items()))),
    )


def _adapter_digest(path: Path) -> str:
    """Return the digest of an adapter's weights, and of the settings beside them, which can hold its alpha."""
    settings = (path if path.is_dir() else path.parent) / SETTINGS
    return content_digest(path) + (f" with {content_digest(settings)}" if settings.is_file() else "")


@lru_cache(maxsize=8)
def _dataset_fingerprint(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Read every picture. `files` (name, size, time) is the cache key, so pictures are read again only if a shard changed."""
    return AnnotatedDataset.open(folder).fingerprint


def target_store(spec: ExpertSpec, folder: Path) -> TargetStore:
    """Return the store of the spec's shards below `folder`."""
    return TargetStore(folder.absolute(), frozen_fingerprint(frozen_inputs(spec)))


class Expert:
    """θ1, the reference and the encoders, loaded once. `forwards` and `dropped_attributes` count up from call to call.

    dropped_attributes: how many attributes did not fit into the text encoder's token limit. `architecture` is the family to load
    with, where it is not the one that the model section names.
    """

    def __init__(self, spec: ExpertSpec, architecture: Family | None = None) -> None:
        device = torch.device(spec.device)
        self.dropped_attributes = 0
        self._spec = spec
        self._device = device
        self._family = architecture or family(spec.model)
        self._dataset = AnnotatedDataset.open(spec.dataset)
        self._tree = load_hierarchy(spec.hierarchy)
        self._encoders = self._family.load_encoders(spec.model, device, spec.vae)
        if not spec.offload_text_encoders:
            self._encoders.place_text(device)
        self._noising = Noising(self._family, self._encoders, self._dataset, spec.model, spec.pictures)
        self._denoisers: FrozenDenoisers | None = None
        if spec.kind != "supervised":
            self._denoisers = FrozenDenoisers(
                self._family,
                self._family.load_denoiser(spec.model),
                None if spec.adapter is None else self._family.load_denoiser(spec.model, spec.adapter),
                dtype=DTYPES[spec.model.dtype],
                device=device,
                forward_batch=spec.forward_batch,
            )
            self._denoisers.speed_up(compiled=spec.compile, float8=spec.float8)

    @property
    def forwards(self) -> int:
        """Number of forwards of θ1 and the reference so far."""
        return 0 if self._denoisers is None else self._denoisers.forwards

    @torch.no_grad()
    def __call__(self, items: Sequence[Item], images: Sequence[bytes]) -> dict[str, Tensor]:
        """Return the tensors of `schema.TARGET_TENSORS`, on the CPU, for items of one bucket and their encoded pictures.

        For pairs `images` holds the items' own pictures first, and then the losers. The result depends on the arguments and the
        spec alone. Raises PictureError, naming the picture, for one that cannot be decoded or is too small, and ValueError for
        outputs that are not finite.
        """
        names = pictures_of(items, self._spec.losers)
        first, *second = (
            self._noising(items, names[start : start + len(items)], images[start:][: len(items)], self._spec.seed, self._device)
            for start in range(0, len(names), len(items))
        )
        labels = [self._dataset.labels(item.sample_id) for item in items]
        outputs: dict[str, Tensor] = {}
        if self._spec.kind != "expert":
            (content,) = self._encode(self._supervised_texts(items, labels))
        else:
            assert self._denoisers is not None
            texts = [self._condition_texts(label) for label in labels]
            conditions = [getattr(text, name) for name in ("positive", "negative", "null", "all") for text in texts]
            content, encoded = self._encode([text.content for text in texts], conditions)
            outputs = vars(self._denoisers(first.x_t, first.timestep, content, encoded, first.micro))
        tensors = {"timestep": first.timestep, "prompt_index": content.index, **outputs}
        tensors |= {f"text.{name}": rows for name, rows in content.rows.items()}
        for prefix, noisy in zip(PICTURE_PREFIXES, (first, *second), strict=False):
            tensors |= {f"{prefix}x_t": noisy.x_t, f"{prefix}target": noisy.target}
            tensors |= {f"{prefix}micro.{name}": rows.float() for name, rows in noisy.micro.items()}
            if self._spec.kind == "reference":
                assert self._denoisers is not None
                tensors[f"{prefix}reference"] = self._denoisers.reference(noisy.x_t, noisy.timestep, content, noisy.micro)
        _check_finite(tensors)
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _condition_texts(self, labels: Labels) -> ConditionTexts:
        texts, dropped = condition_texts(labels, self._tree, self._encoders.count_tokens, self._encoders.token_limit)
        self.dropped_attributes += len(dropped)
        return texts

    def _supervised_texts(self, items: Sequence[Item], labels: Sequence[Labels]) -> list[str]:
        mixture, encoders = self._spec.mixture, self._encoders
        if mixture is None:
            return [self._condition_texts(replace(label, positive_ids=(), negative_ids=())).content for label in labels]
        for label in labels:
            self._condition_texts(label)  # counts what does not fit before any random dropout
        generators = [counter_generator(self._spec.seed, *item, "condition") for item in items]
        return [
            stage_one_text(label, self._tree, mixture, generator, encoders.count_tokens, encoders.token_limit)
            for label, generator in zip(labels, generators, strict=True)
        ]

    def _encode(self, *groups: Sequence[str]) -> list[Texts]:
        """Encode each distinct text of a group once, in the order of first appearance, to float16."""
        if self._spec.offload_text_encoders:
            self._encoders.place_text(self._device)
        encoded = []
        for texts in groups:
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            values = {name: values.to(torch.float16) for name, values in self._encoders.encode_prompts(list(rows)).items()}
            encoded.append(Texts(values, torch.tensor([rows[text] for text in texts], device=self._device)))
        if self._spec.offload_text_encoders:
            self._encoders.place_text(torch.device("cpu"))
        return encoded


def _check_finite(tensors: dict[str, Tensor]) -> None:
    broken = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if broken:
        raise ValueError(
            f"{', '.join(broken)} have values that are not finite; check the weights, or compute in model.dtype='float32'"
        )
