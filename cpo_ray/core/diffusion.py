"""Noising, prediction targets and timestep sampling, as pure functions of their arguments.

Every function works on whole batches: x0, noise, x_t and prediction are (B, ...) latents, t is (B,). Results
are in float32 or finer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class DiffusionProcess(Protocol):
    """How a model's diffusion works. "The model's space" is the space of its predictions: noise or velocity."""

    def timestep(self, u: Tensor) -> Tensor:
        """Return timesteps (B,) from uniform numbers u (B,) in [0, 1)."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the noisy latent x_t (B, ...)."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what a perfect model predicts from x_t, in the model's space."""

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the clean latent that a prediction in the model's space implies."""


@dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """Variance-preserving diffusion over T discrete timesteps: x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise.

    `alphas_cumprod` (T,) holds a_t in [0, 1]. The prediction is the noise ("epsilon"; DDPM, Eq. 14) or the
    velocity sqrt(a_t) noise - sqrt(1 - a_t) x0 ("v_prediction"; Salimans & Ho 2022, Appendix D). Timesteps
    are int64. Raises ValueError for another shape, range or prediction type, and for "epsilon" with a
    terminal a_t of 0, where x_t is the noise itself and says nothing about x0.
    """

    alphas_cumprod: Tensor
    prediction_type: Literal["epsilon", "v_prediction"]

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod
        if alphas.ndim != 1 or len(alphas) == 0 or not bool(((alphas >= 0) & (alphas <= 1)).all()):
            raise ValueError(f"alphas_cumprod has shape {tuple(alphas.shape)}; it must be one row of numbers from 0 to 1")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {self.prediction_type!r}; use 'epsilon' or 'v_prediction'")
        if self.prediction_type == "epsilon" and bool((alphas == 0).any()):
            raise ValueError("a schedule with zero terminal SNR cannot be trained with 'epsilon'; use 'v_prediction'")

    def timestep(self, u: Tensor) -> Tensor:
        count = len(self.alphas_cumprod)
        # The product of a u just below 1 may round up to T.
        return (u * count).floor().long().clamp(max=count - 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, spread = self._coefficients(t, x0)
        return signal * x0 + spread * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._coefficients(t, x0)
        return signal * noise - spread * x0

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        signal, spread = self._coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - spread * prediction) / signal
        return signal * x_t - spread * prediction

    def _coefficients(self, t: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(a_t) and sqrt(1 - a_t), each (B, 1, ...), to multiply a (B, ...) latent."""
        alphas = _per_sample(self.alphas_cumprod.to(t.device)[t], latent)
        return alphas.sqrt(), (1 - alphas).sqrt()


@dataclass(frozen=True)
class FlowProcess:
    """Rectified flow (Esser et al. 2024): x_t = (1 - t) x0 + t noise; the model predicts noise - x0.

    Timesteps are float numbers in (0, 1); a FLUX transformer is given 1000 t. "logit_normal" is the sigmoid
    of a standard normal number; `shift` s > 0 then moves t to s t / (1 + (s - 1) t) (the same, Eq. 23).
    Raises ValueError for another distribution or a shift that is not positive.
    """

    timestep_distribution: Literal["uniform", "logit_normal"] = "logit_normal"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.timestep_distribution not in ("uniform", "logit_normal"):
            raise ValueError(f"timestep_distribution is {self.timestep_distribution!r}; use 'uniform' or 'logit_normal'")
        if not self.shift > 0:
            raise ValueError(f"the timestep shift is {self.shift}; it must be above 0")

    def timestep(self, u: Tensor) -> Tensor:
        # t = 0 has no noise to predict, and the normal quantile of 0 is infinite.
        t = u.float().clamp(1e-6, 1 - 1e-6)
        if self.timestep_distribution == "logit_normal":
            t = torch.sigmoid(torch.special.ndtri(t))
        return self.shift * t / (1 + (self.shift - 1) * t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = _per_sample(t, x0)
        return (1 - t) * x0 + t * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t - _per_sample(t, x_t) * prediction


def _per_sample(values: Tensor, latent: Tensor) -> Tensor:
    """Return values (B,) in float32 or finer, shaped (B, 1, ...), to multiply a (B, ...) latent."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.view(-1, *[1] * (latent.ndim - 1))
