"""The expert's raw outputs, stored so that z_w and z_l follow for every ω without calling the expert again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class ExpertDifferences:
    """Four outputs of the frozen expert θ1 and one of the reference, in a form that survives float16.

    z_w - z_l is a small difference of large numbers: stored raw, the outputs give it with errors of 1-2 % in
    float16 and of 10 % in bfloat16. So one output is kept in float32, and the differences, whose relative
    rounding error is 2^-11 each, in float16. All are (B, ...) in the model's prediction space:

        reference               ε_ref(x_t, y)                                    float32
        null_minus_reference    θ1(∅) - ε_ref                                    float16
        negative_minus_null     θ1(A_neg) - θ1(∅)                                float16
        positive_minus_null     θ1(y, A_pos) - θ1(∅)                             float16
        positive_minus_all      θ1(y, A_pos) - θ1(y, A_pos, A_neg)               float16
    """

    reference: Tensor
    null_minus_reference: Tensor
    negative_minus_null: Tensor
    positive_minus_null: Tensor
    positive_minus_all: Tensor

    @classmethod
    def from_outputs(cls, reference: Tensor, positive: Tensor, negative: Tensor, null: Tensor, all_: Tensor) -> ExpertDifferences:
        """Build from ε_ref(y), θ1(y, A_pos), θ1(A_neg), θ1(∅) and θ1(y, A_pos, A_neg), each (B, ...)."""
        reference, positive, negative = reference.float(), positive.float(), negative.float()
        null, all_ = null.float(), all_.float()
        return cls(
            reference=reference,
            null_minus_reference=(null - reference).to(torch.float16),
            negative_minus_null=(negative - null).to(torch.float16),
            positive_minus_null=(positive - null).to(torch.float16),
            positive_minus_all=(positive - all_).to(torch.float16),
        )

    def winning(self, omega_w: float) -> Tensor:
        """Return z_w = (1 - ω_w) θ1(A_neg) + ω_w θ1(y, A_pos) (CPO, Eq. 10); (B, ...) float32."""
        negative, positive = self.negative_minus_null.float(), self.positive_minus_null.float()
        return self._null() + (1 - omega_w) * negative + omega_w * positive

    def losing(self, omega_l: float) -> Tensor:
        """Return z_l = (1 - ω_l) θ1(∅) + ω_l θ1(y, A_pos, A_neg) (CPO, Eq. 11); (B, ...) float32."""
        return self._null() + omega_l * (self.positive_minus_null.float() - self.positive_minus_all.float())

    def contrast(self, omega_w: float, omega_l: float) -> Tensor:
        """Return z_w - z_l from the stored differences alone; (B, ...) float32."""
        return (
            (1 - omega_w) * self.negative_minus_null.float()
            + (omega_w - omega_l) * self.positive_minus_null.float()
            + omega_l * self.positive_minus_all.float()
        )

    def _null(self) -> Tensor:
        return self.reference + self.null_minus_reference.float()


def direction_cosine(approximate: ExpertDifferences, exact: ExpertDifferences, omega_w: float, omega_l: float) -> Tensor:
    """Return the cosine between two experts' z_w - z_l, per sample (B,) float64.

    It measures the cost of an approximation of θ1 (lower precision, another attention), since plain CPO trains along this
    direction alone.
    """
    one, two = (each.contrast(omega_w, omega_l).flatten(1).double() for each in (approximate, exact))
    return functional.cosine_similarity(one, two, dim=1)
