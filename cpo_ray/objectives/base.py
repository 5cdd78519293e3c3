"""The types that every objective speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

FrozenSource = Literal["target", "reference", "expert"]
FrozenName = Literal["target", "reference", "winning", "losing"]
LossAndMetrics = tuple[Tensor, dict[str, Tensor]]

_NAMES_BY_SOURCE: dict[FrozenSource, tuple[FrozenName, ...]] = {
    "target": ("target",),
    "reference": ("reference",),
    "expert": ("winning", "losing"),
}


@dataclass(frozen=True, eq=False)
class FrozenOutputs:
    """What does not depend on the trained model: (B, ...) float32 in the model's prediction space.

    target: what a perfect denoiser predicts. reference: ε_ref, the frozen base model's output.
    winning and losing: z_w and z_l of CPO, Eq. 10 and 11.
    """

    target: Tensor | None = None
    reference: Tensor | None = None
    winning: Tensor | None = None
    losing: Tensor | None = None

    def get(self, name: FrozenName) -> Tensor:
        """The named tensor. Raises ValueError if this batch has none."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ValueError(f"the batch holds no {name!r} output; produce targets that include it for this objective")
        return tensor


@dataclass(frozen=True)
class ObjectiveParameters:
    """What a loss can be told. `beta` is β as in the public Diffusion-DPO code, which has 5000 for SDXL."""

    beta: float = 5000.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"the objective's beta is {self.beta}; it must be above 0")


@dataclass(frozen=True)
class Objective:
    """A loss by name, with the frozen outputs that it reads.

    `needs` names where they come from: the noise itself, the reference model, or the expert.
    """

    name: str
    needs: frozenset[FrozenSource]
    function: Callable[[Tensor, FrozenOutputs, ObjectiveParameters], LossAndMetrics]

    def __call__(self, prediction: Tensor, frozen: FrozenOutputs, parameters: ObjectiveParameters) -> LossAndMetrics:
        """Loss per sample (B,) and metrics per sample, each (B,) without gradient, of a prediction (B, ...).

        Computed in float32 whatever the prediction's dtype. Raises ValueError if a needed output is missing
        or has another shape than the prediction, which would otherwise broadcast into a wrong number.
        """
        for source in self.needs:
            for name in _NAMES_BY_SOURCE[source]:
                shape = frozen.get(name).shape
                if shape != prediction.shape:
                    raise ValueError(
                        f"objective {self.name!r} got a prediction of shape {tuple(prediction.shape)} and a "
                        f"{name!r} output of shape {tuple(shape)}; both must have the same shape"
                    )
        return self.function(prediction.float(), frozen, parameters)


def mean_per_sample(values: Tensor) -> Tensor:
    """Mean over all dimensions but the first: (B, ...) to (B,)."""
    return values.flatten(1).mean(dim=1)
