"""How the frozen outputs are computed and where they are kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from cpo_ray.config.section import Free, Section


class Targets(Section):
    """Frozen outputs, computed once by a Ray Data actor pool."""

    folder: Path
    """The target store. Shards of different bases, experts, data and seeds share it."""
    draws: PositiveInt = 4
    """Different noisy draws per picture. Later epochs reuse them in turn."""
    shard_size: PositiveInt = 64
    """Samples per shard, which is also the expert's batch."""
    min_actors: Free[PositiveInt] = 1
    max_actors: Free[PositiveInt] = 1
    cpus_per_actor: Free[PositiveFloat] = 1.0
    gpus_per_actor: Free[float] = Field(default=0.0, ge=0)
    forward_batch: PositiveInt | None = None
    """Samples per forward of a frozen model. Set it if a shard does not fit into memory; θ1 sees four times as many texts at
    once."""
    compile: bool = False
    """Compile θ1's transformer blocks: about a minute at the start of every actor, for faster forwards on GPUs."""
    float8: bool = False
    """Compute θ1's linear layers in 8 bits, on GPUs of compute capability 8.9 and above, with model.dtype = "bfloat16". Lossy:
    z_w - z_l of the embedded expert has a cosine of 0.88 with that in float32, where bfloat16 has 0.98 (benchmarks/precision.py
    measures yours)."""
    vae: Path | None = None
    """Folder of a VAE with the base's latent space that works in float16, such as SDXL's published fixed one. It then computes in
    float16. By default the base's own VAE computes in float32."""
    offload_text_encoders: bool = False
    """Keep the text encoders in main memory while the denoisers work: saves 9.8 GB of GPU memory for FLUX.1 and 1.6 for SDXL, and
    costs seconds per shard."""
    overlap: Free[bool] = True
    """Compute targets while training runs. Otherwise all of them are computed first."""
    timeout_seconds: Free[PositiveFloat] = 900.0
    """How long a worker waits for one shard before it gives up with an error."""
