"""DeepSpeed around one denoiser.

Every rank makes an `Engine` after torch.distributed is initialised. All ranks must call a method marked "collective", or none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn

if not torch.cuda.is_available():
    # DeepSpeed reads this when it is imported. Dependencies of diffusers import it, so this module must come before them.
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed

from cpo_ray.config import Optimization
from cpo_ray.config.optimization import bucket_size
from cpo_ray.training.artifacts.tensor_file import TensorEntry, write_tensors
from cpo_ray.training.engine.optimizers import make_optimizer
from cpo_ray.training.engine.partition import Fragment, fragments, model_weights, publish

# Without this, DeepSpeed compiles a shared-memory all-reduce at the start, which takes a minute and needs a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

STATE = "engine.safetensors"
_WEIGHTS, _AVERAGE = "weights", "average"


class Engine:
    """An optimizer with float32 master weights over the trainable parameters of `denoiser`.

    `micro_batch` is the number of samples per forward and rank, `accumulation` the number of micro-batches per step and rank.
    With `bfloat16` the model computes in bfloat16. Collective.
    """

    def __init__(
        self, denoiser: nn.Module, optimization: Optimization, *, micro_batch: int, accumulation: int, bfloat16: bool = False
    ) -> None:
        trained = {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
        assert trained, "no parameter requires a gradient"
        shapes = {name: parameter.shape for name, parameter in trained.items()}
        self.accumulation = accumulation
        self.world_size = distributed.get_world_size()
        self.replicated = optimization.zero_stage < 3
        """Whether every rank holds all trained weights."""
        self._plain = optimization.zero_stage == 0 and not bfloat16
        self._trained = trained
        self._optimizer = make_optimizer(list(trained.values()), optimization)
        self._deepspeed, *_ = deepspeed.initialize(
            model=denoiser,
            model_parameters=list(trained.values()),
            optimizer=self._optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": optimization.gradient_clip,
                "zero_optimization": _zero(optimization, denoiser),
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own optimizer needs a compiler at run time; torch's does not
                "bf16": {"enabled": bfloat16},
                "steps_per_print": None,
            },
        )
        if bfloat16 and optimization.zero_stage == 0:
            # DeepSpeed allocates the state by a step without gradients, which Adam's bias correction would count.
            self._optimizer.state.clear()
        # Without ZeRO no setting bounds the copies in which gradients are reduced.
        largest = bucket_size(sum(shape.numel() for shape in shapes.values()))
        self._deepspeed.allreduce_gradients = partial(self._deepspeed.allreduce_gradients, bucket_size=largest)
        self._fragments = fragments(self._deepspeed, trained, shapes)
        self._updates = 0
        self._decay = optimization.ema_decay
        # Keyed by id, since two equal tensors are two owners. Under ZeRO many parameters share one owner.
        owners = {id(fragment.owner): fragment.owner for fragment in self._fragments.values()}
        self._averages = {key: owner.detach().clone() for key, owner in owners.items()} if self._decay else {}
        self._owners = owners

    @property
    def model(self) -> nn.Module:
        """The wrapped denoiser. Call this one, so that ZeRO-3 gathers the weights that a layer needs."""
        model: nn.Module = self._deepspeed
        return model

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser itself. Under ZeRO-3 its weights have size 0 between forwards."""
        denoiser: nn.Module = self._deepspeed.module
        return denoiser

    @property
    def device(self) -> torch.device:
        """The device for inputs."""
        return torch.device(self._deepspeed.device)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch; the step applies the mean over micro-batches and ranks. Collective."""
        self._deepspeed.backward(loss)
        if not self._deepspeed.is_gradient_accumulation_boundary():
            self._deepspeed.step()  # this call only counts the micro-batch

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear; return the global gradient norm before clipping, NaN if it is not finite. Collective."""
        assert self._deepspeed.is_gradient_accumulation_boundary(), "a step follows the last micro-batch"
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        # Without ZeRO and bfloat16 DeepSpeed clips with torch and drops the norm. The gradients are reduced by now.
        norms = [p.grad.norm() for p in self._trained.values() if p.grad is not None] if self._plain else []
        self._deepspeed.step()
        self._updates += 1
        self._update_averages()
        norm = float(torch.stack(norms).norm() if self._plain else self._deepspeed.get_global_grad_norm())
        return norm if math.isfinite(norm) and norm >= 0 else math.nan  # DeepSpeed writes -1 for an overflow

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained parameters by name, whole, in float32 on the CPU, on rank 0; nothing on other ranks. Collective.

        If the model computes in bfloat16, these are the optimizer's float32 copies, which keep what rounding removes from the
        weights.
        """
        state = {}
        for name, fragment in self._fragments.items():
            # Gathering one at a time spares every GPU from holding a whole model beside its own part.
            whole = fragment.whole(fragment.owner, self.device)
            if distributed.get_rank() == 0:
                state[name] = whole.float().cpu().clone()
        return state

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model and `trained_state` the moving average of the weights inside the block, if one is kept. Collective."""
        if self._averages:
            self._swap_averages()
        try:
            yield
        finally:
            if self._averages:
                self._swap_averages()

    def checksum(self) -> int:
        """A number that changes with any weight that this rank's model computes with. It is equal on all ranks if weights are
        replicated.
        """
        integers = {2: torch.int16, 4: torch.int32}
        weights = model_weights(self._deepspeed, self._trained)
        # Sums of bit patterns are exact in any order and ignore NaN, so a single differing number always shows.
        sums = torch.stack([values.view(integers[values.itemsize]).sum(dtype=torch.int64) for values in weights])
        return int((sums * torch.arange(1, len(weights) + 1, device=sums.device)).sum())

    def save(self, folder: Path) -> None:
        """Write everything needed to continue, on rank 0, for any number of ranks at any ZeRO stage. Collective.

        The file is one safetensors file with a tensor for each trained parameter, in its own shape: the float32 weights, the
        optimizer's state, and the moving average. Tensors are gathered one at a time, so a GPU holds one of them beside its own
        share.
        """
        entries = list(self._entries())
        if distributed.get_rank() == 0:
            write_tensors(folder / STATE, entries, {"updates": str(self._updates)})
        else:
            for entry in entries:
                entry.tensor()

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote. Collective. Raises ValueError if it is missing or belongs to other parameters."""
        path = folder / STATE
        if not path.is_file():
            raise ValueError(f"{folder} holds no checkpoint of this training; delete it to start from the one before")
        with safe_open(path, "pt") as file, torch.no_grad():
            shapes = {f"{_WEIGHTS}/{name}": fragment.shape for name, fragment in self._fragments.items()}
            names = file.offset_keys()
            saved = {name: torch.Size(file.get_slice(name).get_shape()) for name in names if name.startswith(f"{_WEIGHTS}/")}
            if different := sorted(dict(saved.items() ^ shapes.items())):
                raise ValueError(f"{path} is of another training: {different[0]!r} differs here; give this one another name")
            self._updates = int(file.metadata()["updates"])
            for name in names:
                key, _, parameter = name.partition("/")
                self._restore(self._fragments[parameter], key, file.get_tensor(name))
        publish(self._deepspeed)

    def _entries(self) -> Iterator[TensorEntry]:
        for name, fragment in self._fragments.items():
            owner = fragment.owner
            states = {_WEIGHTS: owner, **self._optimizer.state.get(owner, {})}
            if self._averages:
                states[_AVERAGE] = self._averages[id(owner)]
            for key, value in states.items():
                values = value if isinstance(value, Tensor) else torch.tensor(value)  # some optimizers count in plain numbers
                if values.shape == owner.shape:
                    get = partial(fragment.whole, values, self.device)
                    yield TensorEntry(f"{key}/{name}", values.dtype, fragment.shape, get)
                else:  # a step count, or factors of a whole matrix: equal on all ranks
                    yield TensorEntry(f"{key}/{name}", values.dtype, values.shape, values.detach)

    def _restore(self, fragment: Fragment, key: str, values: Tensor) -> None:
        owner = fragment.owner
        if key == _WEIGHTS:
            fragment.put(owner, values)
        elif key == _AVERAGE:
            if self._averages:
                fragment.put(self._averages[id(owner)], values)
        elif not fragment.replicated and values.shape == fragment.shape and values.dim():
            state = self._optimizer.state[owner]
            if key not in state:
                state[key] = torch.zeros_like(owner, dtype=values.dtype)
            fragment.put(state[key], values)
        elif values.dtype == torch.int64:
            self._optimizer.state[owner][key] = int(values)
        else:
            on_device = values.dim() or self._optimizer.defaults.get("fused")
            self._optimizer.state[owner][key] = values.to(owner.device) if on_device else values

    @torch.no_grad()
    def _update_averages(self) -> None:
        """Update the moving average. Each rank averages its own share. The ramp lets a short training forget its start."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for key, average in self._averages.items():
            average.lerp_(self._owners[key], 1 - decay)

    @torch.no_grad()
    def _swap_averages(self) -> None:
        for fragment in self._fragments.values():
            weights, average = fragment.of(fragment.owner), fragment.of(self._averages[id(fragment.owner)])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)
        publish(self._deepspeed)


def _zero(optimization: Optimization, denoiser: nn.Module) -> dict[str, Any]:
    """Return DeepSpeed's ZeRO settings, with buffers that suit the model instead of its defaults of 1 to 4 GB."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in denoiser.parameters()]
    trained = bucket_size(sum(size for size, is_trained in sizes if is_trained))
    gathered = bucket_size(sum(size for size, _ in sizes))
    return {
        "stage": optimization.zero_stage,
        **({"offload_optimizer": {"device": "cpu"}} if optimization.offload_optimizer else {}),
        "reduce_bucket_size": trained,
        "allgather_bucket_size": trained,
        "sub_group_size": trained,  # the update holds a float32 gradient for each number of a group
        "stage3_prefetch_bucket_size": gathered,
        "stage3_max_reuse_distance": gathered,
        "stage3_max_live_parameters": 3 * gathered,  # parameters in use, kept, and fetched ahead
        "stage3_model_persistence_threshold": gathered,
    }
