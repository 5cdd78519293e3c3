"""How SDXL is loaded, predicts and is exported."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cpo_ray.config import ConfigError, Model
from cpo_ray.core.diffusion import DiscreteProcess
from cpo_ray.models.base import Conditioning, Family
from cpo_ray.models.on_diffusers import DiffusersFamily
from cpo_ray.models.sdxl.encoders import LongTextPipeline, SDXLEncoders, tokens
from cpo_ray.models.sdxl.names import original_place
from cpo_ray.models.sdxl.published import LICENCES, PUBLISHED
from cpo_ray.models.sdxl.tiny import tiny
from cpo_ray.models.skeleton import Skeleton

#: Schedulers with a discrete noise schedule, which they all compute from betas. Others (EDM, flows) have another one.
DISCRETE = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


class SDXL(DiffusersFamily):
    """`Family` of Stable Diffusion XL and its fine-tunes."""

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    pipeline_class = LongTextPipeline
    chunked_texts = True
    denoiser = "unet"
    denoiser_class = UNet2DConditionModel
    text_encoder_classes = (CLIPTextModel, CLIPTextModelWithProjection)
    scheduler_class = DDIMScheduler
    schedulers = DISCRETE
    encoders_class = SDXLEncoders
    tokens_of = staticmethod(tokens)
    original_place = staticmethod(original_place)
    tiny = staticmethod(tiny)
    published = PUBLISHED
    licences = LICENCES

    def largest_inputs(self, skeleton: Skeleton, model: Model, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        config = skeleton.denoiser.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditioning = {
            "prompt_embeds": torch.zeros(batch, model.text_chunks * skeleton.text_tokens[0], config.cross_attention_dim),
            "pooled_prompt_embeds": torch.zeros(batch, pooled),
            "time_ids": torch.zeros(batch, 6),
        }
        x_t = torch.zeros(batch, *skeleton.latent_shape(model.resolution))
        return x_t, torch.zeros(batch, dtype=torch.long), conditioning

    def load_process(self, model: Model) -> DiscreteProcess:
        config = self.scheduler_config(model)
        if config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous":
            raise ConfigError(f"{model.base}/scheduler asks for a flow or EDM; sdxl takes a discrete noise schedule")
        # Every scheduler of the list computes its noise schedule from the same settings; this one keeps it as it is.
        scheduler = DDPMScheduler.from_config(config)
        try:
            return DiscreteProcess(scheduler.alphas_cumprod, scheduler.config.prediction_type)
        except ValueError as error:
            raise ConfigError(f"{model.base}/scheduler: {error}") from None

    def load_pipeline(self, model: Model, adapter: Path | None = None) -> LongTextPipeline:
        pipeline: LongTextPipeline = super().load_pipeline(model, adapter)
        pipeline.chunks = model.text_chunks
        return pipeline

    def predict(self, denoiser: nn.Module, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        text = conditioning["prompt_embeds"].to(x_t.dtype)
        prediction: Tensor = denoiser(x_t, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        return prediction


FAMILY: Family = SDXL()
