"""Measure what lower precision, a merged adapter and 8 bits cost: the cosine of z_w - z_l with that of a float32 expert.

    python benchmarks/precision.py --adapter runs/toy/expert/adapter [--base toy] [--data FOLDER] [--output FILE]

The same noisy latents and texts for all. Without --data, pictures of the embedded domain are drawn.

Expected before the first run: merging rounds the weights once more, which every activation is anyway, so no difference. Float8
keeps 4 bits, so the extrapolated difference of outputs would come out with a cosine of 0.95, or better, since the error of one
weight is the same under all conditions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpo_ray.config import Model
from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.plan import Item
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.domains.toy.dataset import make_dataset
from cpo_ray.domains.toy.domain import ToyDomain
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.models.adapters import loading
from cpo_ray.objectives import ExpertDifferences, direction_cosine
from cpo_ray.targets.expert import Expert, ExpertSpec

TREE = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--family", choices=FAMILIES.names, default="sdxl")
    parser.add_argument("--base", default=ToyDomain.base)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--hierarchy", type=Path, default=TREE)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or Path(temporary)
        if options.data is None:
            make_dataset(data, 2 * options.samples, 1, load_hierarchy(options.hierarchy))
        model = Model(family=options.family, base=options.base, resolution=options.resolution)
        spec = ExpertSpec("expert", model, data, options.hierarchy, 0, adapter=options.adapter, device=device)
        exact = outputs(spec, options.samples)
        half = replace(spec, model=model.model_copy(update={"dtype": "bfloat16"}))
        found = {
            "bfloat16, merged": outputs(half, options.samples),
            "bfloat16, adapter beside the weights": outputs(half, options.samples, live=True),
            "bfloat16, θ1 in float8": outputs(replace(half, float8=True), options.samples),
        }
    result = {}
    for name, differences in found.items():
        cosine = direction_cosine(differences, exact, 2.0, 2.0)
        result[name] = {"mean": float(cosine.mean()), "least": float(cosine.min())}
    record = {"samples": options.samples, "cosine of z_w - z_l with that in float32, both omega 2": result}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def outputs(spec: ExpertSpec, samples: int, live: bool = False) -> ExpertDifferences:
    """Return what the expert stores of so many pictures; with `live` the adapter is not merged."""
    dataset = AnnotatedDataset.open(spec.dataset)
    ids = dataset.ids[:samples]
    expert = Expert(spec, unmerged(spec.model) if live else None)
    tensors = expert([Item(sample_id, 0) for sample_id in ids], dataset.images(ids))
    return ExpertDifferences(**{name: tensors[name] for name in ExpertDifferences.__dataclass_fields__})


def unmerged(model: Model) -> Any:
    """The architecture's family, which leaves an adapter beside the weights."""

    architecture: Any = type(family(model))

    class Unmerged(architecture):
        def load_denoiser(self, model: Model, adapter: Path | None = None) -> nn.Module:
            denoiser = super().load_denoiser(model)
            if adapter is not None:
                loading.add(self._adapter(denoiser, adapter), denoiser, self.denoiser)
            frozen: nn.Module = denoiser.eval().requires_grad_(False)
            return frozen

    return Unmerged()


if __name__ == "__main__":
    main()
