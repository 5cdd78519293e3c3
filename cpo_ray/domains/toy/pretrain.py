"""Makes the shipped assets of the embedded domain: `python -m cpo_ray.domains.toy.pretrain --output DIR [--steps N]`.

Four stages, each saved when it ends, the long one also every 250 steps; a second start goes on where the first one stopped:
renders → judge → VAE → denoiser with its text encoders → decoder.  The denoiser is pretrained as a web model is: most captions
tell the content, two in five also name some of the attributes, good and bad alike.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from cpo_ray.core.files import write_bytes, write_json
from cpo_ray.domains.toy.corpus import RENDER_SEED, batches, caption, corpus_texts, render_corpus
from cpo_ray.domains.toy.judge import HEADS, Judge, content_targets
from cpo_ray.domains.toy.render import SIZE, Scene
from cpo_ray.hierarchy import Hierarchy, load_hierarchy
from cpo_ray.models.sdxl import FAMILY
from cpo_ray.models.tiny import Widths

TREE = Path(__file__).parents[3] / "hierarchy" / "painting_toy.yaml"


def train_judge(pictures: Tensor, scenes: list[Scene], output: Path, steps: int = 1500) -> None:
    """Fit the content judge on renders and keep its accuracy on the last thousand, which it did not see."""
    torch.manual_seed(1)
    judge = Judge()
    targets = content_targets([s.content.prompt for s in scenes])
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for index in batches(len(scenes) - 1000, 64, steps, seed=1):
        # Noise and small shifts keep the judge from leaning on the renderer's exact pixels.
        x = pictures[index].float() / 127.5 - 1
        x = x + 0.05 * torch.rand(()) * torch.randn_like(x)
        loss = sum((F.cross_entropy(o, targets[index, i]) for i, o in enumerate(judge(x))), torch.zeros(()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        held_out = judge.eval()(pictures[-1000:].float() / 127.5 - 1)
    accuracy = {
        names[0] + "…": round((o.argmax(1) == targets[-1000:, i]).float().mean().item(), 4)
        for i, (names, o) in enumerate(zip(HEADS, held_out, strict=True))
    }
    print("judge, held-out accuracy:", accuracy, flush=True)
    save_file({k: v.half() for k, v in judge.state_dict().items()}, output / "judge.safetensors")


def train_vae(rank: int, options: argparse.Namespace, pictures: Tensor, decoder_only: bool) -> None:
    """Fit the VAE: L1, squared error of the image and of its gradients, a faint KL; then set the scale of its latents.

    `decoder_only` goes on with a frozen encoder, so that whatever was trained on its latents stays valid: pictures get crisper.
    """
    output, world = options.output, join(rank, options)
    steps = options.decoder_steps if decoder_only else options.vae_steps
    pipeline = build_pipeline(load_hierarchy(TREE), output)
    vae = pipeline.vae.train().to(memory_format=torch.channels_last)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], 2e-3, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    started = time.time()
    for step, whole in enumerate(batches(len(pictures), 16, steps, seed=5 if decoder_only else 2)):
        torch.manual_seed(step * world + rank)
        x = (pictures[whole[rank::world]].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        loss = error.abs().mean() + 2 * error.square().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        # Faint: at a hundred times this weight most latent channels collapse and every edge is lost.
        loss = loss + 1e-7 * posterior.kl().mean()
        loss.backward()
        average_gradients(vae, world)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if rank == 0 and (step % 200 == 0 or step == steps - 1):
            psnr = -10 * torch.log10(error.square().mean() / 4).item()
            print(f"vae step {step}/{steps} loss {loss.item():.4f} psnr {psnr:.1f} dB {time.time() - started:.0f} s", flush=True)
    if rank == 0:
        vae.eval().to(memory_format=torch.contiguous_format)
        if not decoder_only:
            vae.register_to_config(scaling_factor=round(1 / encode(pipeline, pictures[:2000]).std().item(), 5))
        vae.save_pretrained(output / ("vae_final" if decoder_only else "vae"))


@torch.no_grad()
def encode(pipeline: StableDiffusionXLPipeline, pictures: Tensor) -> Tensor:
    """(N, 3, 64, 64) uint8 → unscaled latent means (N, 8, 16, 16)."""
    return torch.cat([pipeline.vae.encode(p.float() / 127.5 - 1).latent_dist.mode() for p in pictures.split(64)])


def encode_text(pipeline: StableDiffusionXLPipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """SDXL's conditioning with gradients: penultimate states of both encoders (B, L, 2W), pooled projection (B, W)."""
    ids = pipeline.tokenizer(
        texts, padding="max_length", truncation=True, max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    )
    first = pipeline.text_encoder(ids.input_ids, output_hidden_states=True)
    second = pipeline.text_encoder_2(ids.input_ids, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def join(rank: int, options: argparse.Namespace) -> int:
    """Become one of the data-parallel processes, of one thread each, and return how many there are."""
    torch.set_num_threads(1)
    world: int = options.processes
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{options.port}", rank=rank, world_size=world)
    return world


def average_gradients(model: nn.Module, world: int) -> None:
    """One all-reduce of all gradients in one flat buffer."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.div_(world).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def build_pipeline(tree: Hierarchy, output: Path) -> StableDiffusionXLPipeline:
    """The untrained pipeline, with the trained VAE once there is one."""
    torch.manual_seed(0)
    configurations = FAMILY.tiny(Widths(denoiser=(64, 128), text=64, vae=(16, 32, 64)))
    pipeline: StableDiffusionXLPipeline = FAMILY.random_pipeline(configurations, corpus_texts(tree))
    if (output / "vae" / "config.json").exists():
        pipeline.vae = type(pipeline.vae).from_pretrained(output / "vae", use_safetensors=True)
    return pipeline


class Trained(nn.Module):
    """All that the denoising loss trains, as one module, so that EMA and resuming need one state dict."""

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.text_encoder_2 = pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2


def train_denoiser(rank: int, options: argparse.Namespace, latents: Tensor, scenes: list[Scene]) -> None:
    """v-prediction with EMA and a cosine learning rate, data parallel; saves and resumes from `denoiser_state.safetensors`."""
    world, output, steps, batch = join(rank, options), options.output, options.steps, options.batch
    tree = load_hierarchy(TREE)
    pipeline = build_pipeline(tree, output)
    model = Trained(pipeline).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.04, final_div_factor=100)
    alphas = pipeline.scheduler.alphas_cumprod
    local = batch // world
    time_ids = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE], dtype=torch.float32).expand(local, 6)
    state_file = output / "denoiser_state.safetensors"
    first = _resume(state_file, model, average, optimizer, schedule)
    started, running = time.time(), 0.0
    for step, whole in enumerate(batches(len(scenes), batch, steps, seed=3)):
        if step < first:
            continue
        index, generator = whole[rank * local : (rank + 1) * local], np.random.default_rng([4, step, rank])
        texts = [caption(scenes[i], tree, generator) for i in index]
        torch.manual_seed(step * world + rank)
        x0, noise, t = latents[index].float(), torch.randn(local, *latents.shape[1:]), torch.randint(0, len(alphas), (local,))
        signal, sigma = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            states, pooled = encode_text(pipeline, texts)
            added = {"text_embeds": pooled, "time_ids": time_ids}
            prediction = model.unet(signal * x0 + sigma * noise, t, states, added_cond_kwargs=added).sample
        loss = F.mse_loss(prediction.float(), signal * noise - sigma * x0)
        loss.backward()
        average_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 and rank == 0:
            print(
                f"denoiser step {step}/{steps} loss {running:.4f} {(time.time() - started) / (step - first + 1):.3f} s/step",
                flush=True,
            )
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == steps):
            _save(state_file, model, average, optimizer, step + 1)
            save_pipeline(pipeline, average, output / "base")


def _save(path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"average.{k}": v for k, v in average.state_dict().items()
    }
    for i, slot in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in slot.items()}
    tensors["step"] = torch.tensor(step)
    write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}))


def _resume(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> int:
    if not path.exists():
        return 0
    tensors = load_file(path)
    step = int(tensors.pop("step"))
    for module, prefix in ((model, "model."), (average, "average.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            slots.setdefault(int(i), {})[key] = value
    for _ in range(step):
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    print(f"denoiser goes on at step {step}", flush=True)
    return step


def save_pipeline(pipeline: StableDiffusionXLPipeline, average: nn.Module, folder: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in half precision."""
    shipped = copy.deepcopy(pipeline)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(shipped, name).load_state_dict(getattr(average, name).state_dict())
    shipped.to(dtype=torch.float16)
    shipped.save_pretrained(str(folder), safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=6600)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--port", type=int, default=29517)
    options = parser.parse_args()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    started = time.time()
    pictures, scenes = render_corpus(options.pictures)
    print(f"{len(scenes)} pictures drawn in {time.time() - started:.0f} s", flush=True)
    if not (output / "judge.safetensors").exists():
        train_judge(pictures, scenes, output)
    if not (output / "vae" / "config.json").exists():
        spawn(train_vae, (options, pictures.share_memory_(), False), nprocs=options.processes)
    pipeline = build_pipeline(load_hierarchy(TREE), output)
    latents = (encode(pipeline, pictures) * pipeline.vae.config.scaling_factor).half().share_memory_()
    spawn(train_denoiser, (options, latents, scenes), nprocs=options.processes)
    spawn(train_vae, (options, pictures.share_memory_(), True), nprocs=options.processes)
    crisp = type(pipeline.vae).from_pretrained(output / "vae_final", use_safetensors=True)
    crisp.register_to_config(_name_or_path="")  # the folder it was trained in is nobody's business
    crisp.to(dtype=torch.float16).save_pretrained(output / "base" / "vae")
    record = {
        "command": "python -m cpo_ray.domains.toy.pretrain",
        "pictures": options.pictures,
        "steps": options.steps,
        "batch": options.batch,
        "vae_steps": options.vae_steps,
        "decoder_steps": options.decoder_steps,
        "render_seed": RENDER_SEED,
        "seconds": round(time.time() - started),
    }
    write_json(output / "made.json", record)


if __name__ == "__main__":
    main()
