"""DeepSpeed around one denoiser; the only module that imports it.

Every rank makes an `Engine` after torch.distributed is initialised, and every method with "collective" in its docstring is called
by all ranks or none.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

if not torch.cuda.is_available():
    # Read when deepspeed is imported, which diffusers' dependencies do on their own: this module is imported before them.
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param

from cpo_ray.config import Optimization

# A shared-memory all-reduce that DeepSpeed would compile at the start, for a minute, and not without a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_TAG = "engine"


class Engine:
    """AdamW with float32 master weights over the parameters of `denoiser` that require gradients.

    `micro_batch` is the number of samples per forward and rank, `accumulation` the number of micro-batches per step and rank.
    With `bfloat16` the model computes in it. Collective.
    """

    def __init__(
        self, denoiser: nn.Module, optimization: Optimization, *, micro_batch: int, accumulation: int, bfloat16: bool = False
    ) -> None:
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        assert trained, "no parameter requires a gradient"
        self.accumulation = accumulation
        self.world_size = distributed.get_world_size()
        self._frozen_excluded = optimization.parameters == "lora"
        self._stage = optimization.zero_stage
        self._bfloat16 = bfloat16
        self._plain = optimization.zero_stage == 0 and not bfloat16
        self._parameters = trained
        offload = {"offload_optimizer": {"device": "cpu"}} if optimization.offload_optimizer else {}
        self._deepspeed, *_ = deepspeed.initialize(
            model=denoiser,
            model_parameters=trained,
            optimizer=torch.optim.AdamW(trained, lr=optimization.learning_rate, weight_decay=optimization.weight_decay),
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": optimization.gradient_clip,
                "zero_optimization": {"stage": optimization.zero_stage, **offload},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own is compiled on the spot; torch's is there
                "bf16": {"enabled": bfloat16},
                "steps_per_print": None,
            },
        )

        if bfloat16 and optimization.zero_stage == 0:
            # Here DeepSpeed takes a step without gradients to allocate the state, which Adam's bias correction would count.
            self._deepspeed.optimizer.optimizer.state.clear()

    @property
    def model(self) -> nn.Module:
        """The wrapped denoiser: call this one, so that ZeRO-3 gathers the weights a layer needs."""
        return self._deepspeed

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser itself. Its weights are of size 0 between forwards under ZeRO-3."""
        return self._deepspeed.module

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return torch.device(self._deepspeed.device)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch; the step applies the mean over micro-batches and ranks. Collective."""
        self._deepspeed.backward(loss)
        if not self._deepspeed.is_gradient_accumulation_boundary():
            self._deepspeed.step()  # only counts the micro-batch

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear; returns the global gradient norm before clipping, NaN if it is not finite. Collective."""
        assert self._deepspeed.is_gradient_accumulation_boundary(), "a step follows the last micro-batch"
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        # Without ZeRO and bfloat16 DeepSpeed clips by torch and forgets the norm; the gradients are reduced already.
        norms = [parameter.grad.norm() for parameter in self._parameters if parameter.grad is not None] if self._plain else []
        self._deepspeed.step()
        norm = float(torch.stack(norms).norm() if self._plain else self._deepspeed.get_global_grad_norm())
        return norm if math.isfinite(norm) and norm >= 0 else math.nan  # DeepSpeed writes -1 for an overflow

    def save(self, folder: Path) -> None:
        """Write this rank's part of the weights and the optimizer's state; each rank may have a folder of its own. Collective."""
        self._deepspeed.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._frozen_excluded)

    def load(self, folder: Path) -> None:
        """Go on from a folder that holds the files of all ranks, saved by as many ranks at the same ZeRO stage. Collective.

        DeepSpeed's files are pickles: load none that this run did not write. Raises ValueError if there is no checkpoint.
        """
        path, _ = self._deepspeed.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._frozen_excluded)
        if path is None:
            raise ValueError(f"{folder} holds no checkpoint of this training; delete it to start from the one before")

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole, float32 on the CPU, on rank 0; nothing on the others. Collective.

        Where the model computes in bfloat16 these are the optimizer's copies, which have what rounding took from the weights.
        """
        state = {}
        for name, parameter in self.denoiser.named_parameters():
            if parameter.requires_grad:
                # One at a time: no GPU has to hold a whole model beside its own part.
                whole = self._master(parameter) if self._bfloat16 else self._gathered(parameter)
                if distributed.get_rank() == 0:
                    state[name] = whole.float().cpu().clone()
        return state

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
            return parameter.detach().clone()

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """The float32 copy of a bfloat16 parameter."""
        if self._stage == 0:
            (masters,) = self._deepspeed.optimizer.fp32_groups
            return next(master for own, master in zip(self._parameters, masters, strict=True) if own is parameter).detach()
        master: Tensor = safe_get_full_fp32_param(parameter)
        return master


def learning_rate_at(step: int, steps: int, optimization: Optimization) -> float:
    """The rate of a step, from 0: a linear warm-up that begins above 0, then constant or half a cosine that ends above 0."""
    warmup = optimization.warmup_steps
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    if optimization.decay == "constant":
        return optimization.learning_rate
    return optimization.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
