"""The `optimization` section of a configuration, one for each training. No torch, no Ray."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cpo_ray.config.section import Free, Section

#: Numbers that ZeRO reduces or gathers at a time, at most. DeepSpeed's own 5e8 hold 1 to 2 GB of a GPU whatever the model's size;
#: this many (134 MB in bfloat16, 268 in float32) keep a network busy just as well, and hold the largest layer of FLUX.1, 5.7e7.
LARGEST_BUCKET = 2**26


class Optimization(Section):
    """Optimizer, schedule and parallelism of one training. Stage 1 and stage 2 each have such a section; baselines share that of
    stage 2.
    """

    parameters: Literal["lora", "full"] = "lora"
    steps: PositiveInt | None = None
    """Optimizer steps. Give either this or epochs."""
    epochs: PositiveFloat | None = None
    global_batch: PositiveInt = 32
    """Samples per optimizer step. The number of workers never changes it."""
    micro_batch: Free[PositiveInt] = 16
    """Samples per forward and worker. Gradient accumulation follows from it."""
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    """Bytes of optimizer state per trained weight: "adamw" 8; "adafactor" next to nothing for matrices, without momentum, as in
    Diffusion-DPO for SDXL; "adamw_8bit" 2, by bitsandbytes on a GPU. The last two need zero_stage 0."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Export and draw with a moving average of the weights; 0.99 to 0.9999 in long trainings, 0 switches it off. After n steps
    the decay is at most (1 + n) / (10 + n), so that the start is forgotten. Takes 4 bytes per trained weight."""
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from nothing."""
    warmup_share: float = Field(default=0.0, ge=0, le=0.5)
    """The same as a share of all steps, which fits any number of pictures. Give one of both."""
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    zero_stage: Free[Literal[0, 1, 2, 3]] = 0
    """DeepSpeed ZeRO stage. Plain data parallel (0) is fastest for LoRA."""
    offload_optimizer: Free[bool] = False
    """Keep the optimizer's float32 copies in main memory (ZeRO 1 to 3): slower, but saves 12 bytes of GPU memory per trained
    parameter."""
    gradient_checkpointing: Free[bool] = False
    """Compute activations again in the backward pass instead of keeping them: a third more time, a fraction of the memory."""
    workers: Free[PositiveInt] = 1
    cpus_per_worker: Free[PositiveFloat] = 1.0
    gpus_per_worker: Free[float] = Field(default=0.0, ge=0)
    checkpoint_every: Free[PositiveInt] = 100
    """Optimizer steps between checkpoints. A crash loses at most this many."""
    max_failures: Free[int] = Field(default=1, ge=0)
    """How often a crashed worker group restarts from its last checkpoint."""
    spike_factor: Free[PositiveFloat] = 20.0
    """Training stops if the gradient norm is clipped and exceeds its running median by this factor. NaN always stops it."""

    @model_validator(mode="after")
    def _one_length(self) -> Optimization:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> Optimization:
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give only one of warmup_steps and warmup_share; 0 switches one off")
        return self

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Optimization:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Optimization:
        if self.optimizer != "adamw" and self.zero_stage:
            raise ValueError(
                f"optimizer {self.optimizer!r} needs zero_stage 0: ZeRO shards the weights where its state cannot be sharded; "
                "use adamw with ZeRO, or no ZeRO, since its state is small"
            )
        if self.optimizer == "adamw_8bit" and not self.gpus_per_worker:
            raise ValueError("optimizer 'adamw_8bit' needs a GPU: set gpus_per_worker, or choose adamw or adafactor")
        return self


def bucket_size(numbers: int) -> int:
    """Return how many of so many numbers ZeRO has in one buffer; even, as DeepSpeed wants it.

    Of the trained parameters: those whose gradients are reduced together (one buffer at ZeRO 1 and 2 during the backward pass, at
    ZeRO-3 all the time), and that ZeRO-3 updates together in float32. Of all parameters: those that ZeRO-3 gathers ahead of their
    use, and those that it keeps for a use soon after.
    """
    return min(LARGEST_BUCKET, numbers + numbers % 2)


def missing_package(optimization: Optimization) -> str | None:
    """Return a sentence that names the package to install for the optimizer, or None."""
    if optimization.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        return (
            "optimizer 'adamw_8bit' needs the package bitsandbytes, which is not installed: "
            "pip install 'cpo_ray[gpu]' on every node, or choose adamw or adafactor"
        )
    return None
