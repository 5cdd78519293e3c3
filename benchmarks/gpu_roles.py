"""What `gpu_step.py` times, on one device: the expert stage, the plain training step, and the naive loop."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from counting import Cost, cost_of
from PIL import Image
from random_models import Size, random_model
from torch import Tensor, nn

from cpo_ray.config import Lora, Model
from cpo_ray.core.plan import Batch, Item
from cpo_ray.core.prompts import Labels, condition_texts
from cpo_ray.data.picture import decode, fit
from cpo_ray.data.shards import AnnotatedDataset, write_shards
from cpo_ray.data.validate import Origin, annotated_row
from cpo_ray.domains.toy.render import render, sample_scene
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models.base import DTYPES, Conditioning, Family
from cpo_ray.objectives import ExpertDifferences
from cpo_ray.objectives.cpo_stabilised import CPO_STABILISED, StabilisedSettings
from cpo_ray.targets.expert import Expert, ExpertSpec
from cpo_ray.targets.reader import TargetReader
from cpo_ray.targets.store import TargetStore

TREE = Path(__file__).parents[1] / "hierarchy" / "painting_toy.yaml"
SETTINGS = StabilisedSettings(name="cpo_s", omega_win=2.0, omega_lose=2.0, beta=5000.0)
CONDITIONS = ("positive", "negative", "null", "all")


class Student:
    """The trained model and its plain step: gradients of micro-batches, clipping, AdamW on float32 copies of the weights."""

    def __init__(self, family: Family, model: Model, parameters: str, compiled: bool) -> None:
        self.family, self.dtype = family, DTYPES[model.dtype]
        self.denoiser = family.load_denoiser(model)
        if parameters == "lora":
            family.add_lora(self.denoiser, Lora(), seed=0)
            for values in self.denoiser.parameters():
                values.data = values.data.to(self.dtype)
        else:
            for module in self.denoiser.modules():  # weights of its own: the frozen models share the others
                for name, values in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(values.detach().clone()))
        if compiled:
            family.compile_blocks(self.denoiser)
        self.trained = [values for values in self.denoiser.parameters() if values.requires_grad]
        self.masters = [values.detach().float().clone() for values in self.trained]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-6, fused=True)

    def backward(self, x_t: Tensor, timestep: Tensor, conditioning: Conditioning, expert: ExpertDifferences | None) -> None:
        """Add the gradient of one micro-batch."""
        prediction = self.family.predict(self.denoiser, x_t, timestep, conditioning)
        losses, _ = CPO_STABILISED((CPO_STABILISED.outputs(prediction, None, None, expert, SETTINGS),), SETTINGS)
        losses.mean().backward()

    def step(self) -> None:
        """Update the weights and clear the gradients."""
        for master, values in zip(self.masters, self.trained, strict=True):
            master.grad = None if values.grad is None else values.grad.float()
            values.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(tuple(self.trained), tuple(self.masters))


@dataclass(frozen=True)
class Choice:
    """Samples in a shard and in a micro-batch, what is trained, and the faster variants.

    `compiled` has the blocks of θ1 and of the student compiled at their first call, unless that is forbidden.
    """

    batch: int
    micro_batch: int
    parameters: str
    compiled: bool
    half_vae: bool


class Roles:
    """Expert, student and naive loop of one architecture, on the same pictures."""

    def __init__(self, name: str, size: Size, folder: Path, device: torch.device, choice: Choice) -> None:
        self.device, self.size, self.batch, self.micro_batch = device, size, choice.batch, choice.micro_batch
        self.family, model = random_model(name, size, folder / "base", device)
        self.items = [Item(f"picture-{number}", 0) for number in range(self.batch)]
        self.tree, self.dataset = load_hierarchy(TREE), _dataset(folder / "data", size.pixels, self.items)
        self.images = self.dataset.images([item.sample_id for item in self.items])
        self.store = TargetStore(folder / "targets", "benchmark")
        # Paths that the random family does not read: that there is an adapter, and a VAE for float16.
        vae = folder if choice.half_vae else None
        spec = ExpertSpec(
            "expert", model, folder / "data", TREE, 0, adapter=folder, compile=choice.compiled, vae=vae, device=str(device)
        )
        self.expert = Expert(spec, self.family)
        self.encoders, self.process = self.family.load_encoders(model, device, vae), self.family.load_process(model)
        self.student = Student(self.family, model, choice.parameters, choice.compiled)
        self.reference = self.family.load_denoiser(model)
        self.live = self.family.load_denoiser(model)  # θ1 as the naive loop has it, its adapter beside the weights
        self.family.add_lora(self.live, Lora(), seed=1)
        for values in self.live.parameters():
            values.data = values.data.to(self.student.dtype)
        self.live.requires_grad_(False)

    def expert_stage(self) -> None:
        """From encoded pictures to a shard on disk."""
        self.store.write(self.items, self.expert(self.items, self.images), {})

    def training_step(self) -> None:
        """From the shard to new weights; `expert_stage` comes before."""
        reader = TargetReader(self.store, [tuple(self.items)], 1.0, "benchmark")
        for start in range(0, self.batch, self.micro_batch):
            items = tuple(self.items[start : start + self.micro_batch])
            targets = reader.batch(Batch(items, (1.0,) * len(items)), self.device)
            self.student.backward(*targets.inputs(self.student.dtype), targets.expert)
        self.student.step()

    def cpo_sample(self) -> None:
        """Both, one after the other."""
        self.expert_stage()
        self.training_step()

    def naive_loop(self) -> None:
        """As many samples one by one, and one optimizer step."""
        for item, image in zip(self.items, self.images, strict=True):
            picture, micro = self.picture(image)
            x0 = self.encoders.encode_pictures(picture)
            timestep = self.process.timestep(torch.rand(1, dtype=torch.float64)).to(self.device)
            x_t = self.process.add_noise(x0, torch.randn_like(x0), timestep).to(self.student.dtype)
            count, limit = self.encoders.count_tokens, self.encoders.token_limit
            texts, _ = condition_texts(self.dataset.labels(item.sample_id), self.tree, count, limit)
            content = self.encoders.encode_prompts([texts.content]) | micro
            with torch.no_grad():
                conditions = [self.encoders.encode_prompts([getattr(texts, name)]) | micro for name in CONDITIONS]
                outputs = [self.family.predict(self.live, x_t, timestep, condition) for condition in conditions]
                reference = self.family.predict(self.reference, x_t, timestep, content)
            self.student.backward(x_t, timestep, content, ExpertDifferences.from_outputs(reference, *outputs))
        self.student.step()

    def picture(self, image: bytes) -> tuple[Tensor, Conditioning]:
        """(1, 3, R, R) in [-1, 1] on the CPU, and its sizes."""
        pixels, size = fit(decode(image), (self.size.pixels, self.size.pixels))
        return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1, self.encoders.micro_conditioning([size])

    def costs(self) -> dict[str, Cost]:
        """Return what one sample takes of every model, counted in one eager call each."""
        picture, micro = self.picture(self.images[0])
        found: dict[str, Cost] = {}
        found["VAE"], x0 = cost_of(lambda: self.encoders.encode_pictures(picture))
        found["text"], text = cost_of(lambda: self.encoders.encode_prompts(["a red circle"]))
        timestep = self.process.timestep(torch.rand(1, dtype=torch.float64)).to(self.device)
        arguments = x0.to(self.student.dtype), timestep, text | micro
        with torch.no_grad():
            found["forward"], output = cost_of(lambda: self.family.predict(self.reference, *arguments).float())
            found["live forward"], _ = cost_of(lambda: self.family.predict(self.live, *arguments))
        expert = ExpertDifferences.from_outputs(output, output + 0.1, output, output, output - 0.1)
        found["step"], _ = cost_of(lambda: self.student.backward(*arguments, expert))
        self.student.step()
        return found


def _dataset(folder: Path, pixels: int, items: list[Item]) -> AnnotatedDataset:
    """Square JPEGs a quarter larger than the model's pictures, which makes for work, and with grain, as photographs have."""
    generator, tree, rows = np.random.default_rng(0), load_hierarchy(TREE), []
    side = pixels * 5 // 4
    for item in items:
        scene, stream = sample_scene(generator), io.BytesIO()
        large = np.asarray(Image.fromarray(render(scene)).resize((side, side)), dtype=np.float32)
        grain = generator.normal(0, 8, large.shape)
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        labels = Labels(scene.content.prompt, scene.positive_ids, scene.negative_ids)
        rows.append(annotated_row(item.sample_id, stream.getvalue(), labels, Origin("renderer"), tree))
    write_shards(rows, folder)
    return AnnotatedDataset.open(folder)
