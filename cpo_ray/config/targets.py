"""How the frozen outputs are computed, and where they are kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from cpo_ray.config.section import Free, Section


class Targets(Section):
    """Frozen outputs, computed once by a Ray Data actor pool."""

    folder: Path
    """Target store; shards of different bases, experts, data and seeds live side by side in it."""
    draws: PositiveInt = 4
    """Different noisy draws per picture; later epochs reuse them in turn."""
    shard_size: PositiveInt = 64
    """Samples per shard, which is also the expert's batch."""
    min_actors: Free[PositiveInt] = 1
    max_actors: Free[PositiveInt] = 1
    cpus_per_actor: Free[PositiveFloat] = 1.0
    gpus_per_actor: Free[float] = Field(default=0.0, ge=0)
    forward_batch: PositiveInt | None = None
    """Samples per forward of a frozen model, where a shard, four times of which θ1 sees at once, does not fit into memory."""
    compile: bool = False
    """Compile θ1's transformer blocks: a minute at the start of every actor, for faster forwards on GPUs."""
    float8: bool = False
    """θ1's linear layers in 8 bits, for GPUs of compute capability 8.9 on, with model.dtype = "bfloat16". Lossy: the embedded
    expert's z_w - z_l has a cosine of 0.88 with that in float32, in bfloat16 of 0.98 (benchmarks/precision.py measures yours)."""
    vae: Path | None = None
    """Folder of a VAE with the base's latent space that bears float16, such as SDXL's published fixed one; it then computes in
    that. Without it the base's own computes in float32."""
    offload_text_encoders: bool = False
    """Keep the text encoders in main memory while the denoisers work: 9.8 GB less on the GPU for FLUX.1, 1.6 for SDXL, for
    seconds per shard."""
    overlap: Free[bool] = True
    """Compute targets while training runs; otherwise all of them before it starts."""
    timeout_seconds: Free[PositiveFloat] = 900.0
    """How long a worker waits for one shard before it gives up with a sentence."""
