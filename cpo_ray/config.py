"""The configuration: one strict section per component, read from a TOML file and `section.key=value` overrides.

No torch, no Ray: `--help` and `--check` stay quick.  Unknown keys are errors that list the valid ones.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from cpo_ray.section import ConfigError, Section
from cpo_ray.sweep.settings import Sweep
from cpo_ray.training.settings import FREE_ON_RESUME, Optimization

Settings = TypeVar("Settings", bound=Section)


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder and its MLflow run; the same name with --resume goes on where it stopped."""
    output: Path
    """Folder of all runs; the run writes to output/name and nowhere else but the target store."""
    seed: int = Field(default=0, ge=0)
    """Everything random is a function of this number, the sample's id and the draw."""


class Flow(Section):
    """Rectified-flow families (FLUX); the others have a noise schedule of their own and read nothing here."""

    timesteps: Literal["uniform", "logit_normal"] = "logit_normal"
    """How training draws its times in (0, 1): evenly, as in the paper, or more from the middle (Esser et al. 2024)."""
    shift: PositiveFloat | None = None
    """Moves times towards noise, 1 leaves them; without it as far as the base's own pipeline, 3.16 for FLUX.1-dev at 1024."""
    guidance: float = Field(default=1.0, ge=0)
    """The guidance that a distilled base is told in training: one value for expert, reference and trained model."""
    text_tokens: int = Field(default=512, ge=8, le=512)
    """Longest text of the T5 encoder, the end token included."""
    padded_text: bool = False
    """False: the model sees a text's own tokens only, which is what is stored. True: text_tokens of them, padding included, as
    diffusers' pipeline and others feed FLUX.1; 4 MB per prompt at 512."""


class Model(Section):
    family: Literal["sdxl", "flux"]
    """Architecture of the base model."""
    base: str
    """Hub id or local folder of the base pipeline, or "toy" for the embedded one."""
    revision: str | None = None
    """Git revision of a hub id; pin it, since target shards are addressed by it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision of frozen and trained models; stored targets keep their own (see schema)."""
    resolution: PositiveInt = 1024
    """Side in pixels of the square that training pictures are, or have the area of (see data.pictures)."""
    flow: Flow = Flow()


class Pictures(Section):
    """At what size a picture is trained on: it is scaled down to cover a bucket of fixed size, and what sticks out is cut off."""

    buckets: Literal["square", "aspect"] = "square"
    """square: model.resolution on both sides. aspect: the size of about that area which cuts off least, from 1:2 to 2:1, as
    SDXL was trained."""
    multiple: int = Field(default=64, ge=8)
    """Sides in aspect buckets are multiples of this many pixels; 64 and resolution 1024 give SDXL's own sizes."""
    together: PositiveInt = 8
    """A step of aspect buckets is made of so many pictures of one size, as many of another, and so on (as far as that divides
    global_batch). A micro-batch takes no more."""
    crop: Literal["center", "random"] = "center"
    """Where the picture is cut: evenly on both sides, or at random, anew in every draw. SDXL is told where."""
    upscale: bool = False
    """Scale up pictures that are too small. Otherwise aspect buckets take them at 3/4 or 1/2 of the resolution, and pictures that
    are smaller still, or smaller than the square, are left out; their number is said before training starts."""


class Data(Section):
    folder: Path
    """Annotated shards (Parquet) are read from here; the import writes them here."""
    toy_pictures: int = Field(default=0, ge=0)
    """With a positive number the embedded domain draws that many annotated pictures into `folder` when it is empty."""
    hierarchy: Path
    """YAML file of the attribute tree that the annotations refer to."""
    proportion: float = Field(default=1.0, gt=0, le=1)
    """Share of the training pictures used, a nested choice by the hash of the id (paper, Table 3)."""
    pictures: Pictures = Pictures()


class Lora(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    """Scale of the update is alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter (matched at the end of the module's path)."""


class ConditionMixture(Section):
    """How often stage 1 sees each form of the condition; the shares are normalised (method: stage 1)."""

    null: float = Field(default=0.07, ge=0)
    negative: float = Field(default=0.13, ge=0)
    content: float = Field(default=0.05, ge=0)
    content_positive: float = Field(default=0.22, ge=0)
    all: float = Field(default=0.53, ge=0)
    attribute_dropout: float = Field(default=0.35, ge=0, lt=1)
    """Chance that an attribute is left out of the text, so that a missing positive does not betray the negative."""


class Expert(Section):
    """Stage 1: the expert θ1 = base + SFT adapter."""

    adapter: Path | None = None
    """A finished expert adapter; without it stage 1 trains one."""
    lora: Lora = Lora()
    optimization: Optimization
    conditions: ConditionMixture = ConditionMixture()
    obedience_gate: float = 0.15
    """Stage 2 is preceded by a warning when IoU_neg(C) - IoU_neg(A) of the expert is below this (Table S6)."""
    stop_at_gate: bool = False
    """Stop instead of warning."""


class Targets(Section):
    """Frozen outputs, computed once by a Ray Data actor pool."""

    folder: Path
    """Target store; shards of different bases, experts, data and seeds live side by side in it."""
    draws: PositiveInt = 4
    """Different noisy draws per picture; later epochs reuse them in turn."""
    shard_size: PositiveInt = 64
    """Samples per shard, which is also the expert's batch."""
    min_actors: PositiveInt = 1
    max_actors: PositiveInt = 1
    cpus_per_actor: PositiveFloat = 1.0
    gpus_per_actor: float = Field(default=0.0, ge=0)
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
    overlap: bool = True
    """Compute targets while training runs; otherwise all of them before it starts."""
    timeout_seconds: PositiveFloat = 900.0
    """How long a worker waits for one shard before it gives up with a sentence."""


class Preference(Section):
    """Stage 2: the objective (paper, Eq. 10 to 14)."""

    objective: Literal["cpo", "cpo_s"] = "cpo_s"
    omega_win: float = Field(default=2.0, ge=0)
    omega_lose: float = Field(default=2.0, ge=0)
    beta: PositiveFloat = 5000.0
    """β of the public Diffusion-DPO code: κ = β / 2 on the mean over C, H, W."""
    lora: Lora = Lora()
    optimization: Optimization
    baselines: tuple[Literal["sft", "cpo", "cpo_s"], ...] = ()
    """Trained on the same data for comparison: "sft" is supervised training on the pictures with at most one negative."""


class Evaluation(Section):
    pictures: PositiveInt = 240
    """Pictures per model; the same prompts and noise for all of them."""
    inference_steps: PositiveInt = 20
    guidance_scale: float = Field(default=2.0, ge=1)
    batch: PositiveInt = 30
    actors: PositiveInt = 2
    cpus_per_actor: PositiveFloat = 1.0
    gpus_per_actor: float = Field(default=0.0, ge=0)
    samples: int = Field(default=8, ge=0)
    """Pictures drawn beside a training at each of its checkpoints, from fixed prompts and noise, shown in MLflow; 0 for none."""
    cpus_per_sample: PositiveFloat = 1.0
    """What drawing them takes; where the training leaves less, they are drawn when it ends."""
    seed: int = Field(default=90_000, ge=0)
    """Seed of the noise that is counted; never used in training or tuning."""


class Machine(Section):
    """What the run is planned for; `--check` looks at the machine or cluster that it runs on for what is not stated here."""

    gpu: str | None = None
    """Kind of GPU, such as "H100", to plan for one that is elsewhere."""
    gpu_gigabytes: PositiveFloat | None = None
    """What a program can use of each GPU, in 10^9 bytes."""
    teraflop_per_second: PositiveFloat | None = None
    """What one GPU, or one CPU where there is none, sustains on these models; expected times follow from it. Without it 40 % of
    the peak of a known GPU."""


class Tracking(Section):
    uri: str | None = None
    """MLflow tracking URI; without it an sqlite store in the output folder."""
    experiment: str = "cpo"


class Config(Section):
    """Everything a run needs, complete in one file."""

    run: Run
    model: Model
    data: Data
    expert: Expert
    targets: Targets
    preference: Preference
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    machine: Machine = Machine()
    sweep: Sweep | None = None
    """What `tune/search_cpo.py` tries out; every other job leaves it alone."""

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.run.output / self.run.name


def load(file: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides (values in TOML syntax, bare words are strings) and validate.

    Raises ConfigError with one sentence per problem.
    """
    return load_as(Config, file, overrides)


def load_as(schema: type[Settings], file: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """`load` for a job whose file has another form."""
    path = Path(file)
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; complete ones are in jobs/configs/") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for text in overrides:
        _override(tree, text)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(schema, path, problem) for problem in error.errors())) from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with some values replaced, as on the command line. Raises ConfigError as `load` does."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for text in overrides:
        _override(tree, text)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        where = Path("the configuration")
        raise ConfigError("\n".join(_sentence(Config, where, problem) for problem in error.errors())) from None


def dump(config: Config) -> str:
    """The resolved configuration as TOML, ready for `--config`."""
    lines: list[str] = []

    def section(name: str, values: dict[str, Any]) -> None:
        lines.append(f"\n[{name}]" if lines else f"[{name}]")
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict))
        for key, value in values.items():
            if isinstance(value, dict):
                section(f"{name}.{key}", value)

    for name, values in config.model_dump(mode="json", exclude_none=True).items():
        section(name, values)
    return "\n".join(lines) + "\n"


def changed(before: str, config: Config) -> list[str]:
    """What a resumed run may not change and yet differs from `before`, the text of `dump` when it was started."""
    old, new = _flat(tomllib.loads(before)), _flat(config.model_dump(mode="json", exclude_none=True))
    keys = [key for key in sorted(old | new) if key.rpartition(".")[2] not in FREE_ON_RESUME]
    return [f"{key} = {new.get(key)!r} (was {old.get(key)!r})" for key in keys if old.get(key) != new.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not sections or not last:
        raise ConfigError(f"override {text!r} is not of the form section.key=value, for instance run.seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    place = tree
    for name in sections:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError(f"override {text!r} goes through {name!r}, which is a value and not a section")
    place[last] = parsed


def _sentence(schema: type[Section], path: Path, problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        valid = sorted(_fields_at(schema, parents))
        near = difflib.get_close_matches(str(key), valid, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{path}: unknown key {where!r}; {hint}valid keys here: {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"{path}: {where!r} is missing; add it to the file or pass {where}=VALUE"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"  # a whole section says nothing
    return f"{path}: {where!r}{found}: {message[0].lower()}{message[1:]}"


def _fields_at(schema: type[Section], sections: Sequence[int | str]) -> set[str]:
    model: Any = schema
    for name in sections:
        annotation = model.model_fields[str(name)].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))  # Sweep | None
    return set(model.model_fields)
