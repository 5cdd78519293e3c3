from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpo_ray.objectives import ExpertDifferences

OMEGAS = [1.0, 1.5, 2.0, 2.5, 3.0]
Outputs = dict[str, Tensor]


def outputs(difference: float, same_effect: bool = False) -> Outputs:
    """Expert outputs in float64 of magnitude 1, each step between two of them of relative size `difference`.

    With `same_effect` the negative attributes act alike with and without the content, as they tend to.
    """
    generator = torch.Generator().manual_seed(0)
    reference, *steps = torch.randn(5, 4, 4096, generator=generator, dtype=torch.float64)
    to_null, to_negative, to_positive, to_all = (difference * step for step in steps)
    null = reference + to_null
    positive = null + to_positive
    return {
        "reference": reference,
        "null": null,
        "negative": null + to_negative,
        "positive": positive,
        "all_": positive + (to_negative + 0.3 * to_all if same_effect else to_all),
    }


def naive_winning(raw: Outputs, omega: float) -> Tensor:
    return (1 - omega) * raw["negative"] + omega * raw["positive"]


def naive_losing(raw: Outputs, omega: float) -> Tensor:
    return (1 - omega) * raw["null"] + omega * raw["all_"]


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def contrast_of_raw(raw: Outputs, omega: float, dtype: torch.dtype) -> Tensor:
    """z_w - z_l in float32 of outputs that were stored as they are, in `dtype`."""
    stored = {name: output.to(dtype).float() for name, output in raw.items()}
    return naive_winning(stored, omega) - naive_losing(stored, omega)


def test_by_hand() -> None:
    one = torch.ones(1, 1)
    stored = ExpertDifferences.from_outputs(1 * one, positive=5 * one, negative=3 * one, null=2 * one, all_=4.5 * one)
    fields = (
        stored.null_minus_reference,
        stored.negative_minus_null,
        stored.positive_minus_null,
        stored.positive_minus_all,
    )
    assert [field.item() for field in fields] == [1.0, 1.0, 3.0, 0.5]
    assert {field.dtype for field in fields} == {torch.float16}
    assert stored.reference.dtype == torch.float32
    assert stored.winning(2).item() == 7.0  # -1 · 3 + 2 · 5
    assert stored.losing(3).item() == 9.5  # -2 · 2 + 3 · 4.5
    assert stored.contrast(2, 3).item() == -2.5


@pytest.mark.parametrize("same_effect", [False, True])
@pytest.mark.parametrize("difference", [0.01, 0.03, 0.05])
@pytest.mark.parametrize("omega_w", OMEGAS)
def test_contrast_is_within_half_a_percent_for_every_omega(omega_w: float, difference: float, same_effect: bool) -> None:
    raw = outputs(difference, same_effect)
    stored = ExpertDifferences.from_outputs(**{name: output.float() for name, output in raw.items()})
    for omega_l in OMEGAS:
        winning, losing = naive_winning(raw, omega_w), naive_losing(raw, omega_l)
        exact = winning - losing
        assert relative_error(stored.contrast(omega_w, omega_l), exact) < 0.005
        assert relative_error(stored.winning(omega_w) - stored.losing(omega_l), exact) < 0.005
        # A few 1e-4 of a difference of a few percent.
        assert relative_error(stored.winning(omega_w), winning) < 1e-4
        assert relative_error(stored.losing(omega_l), losing) < 1e-4


@pytest.mark.parametrize("omega", OMEGAS)
def test_storing_the_outputs_as_they_are_would_not_do(omega: float) -> None:
    raw = outputs(0.025)
    exact = naive_winning(raw, omega) - naive_losing(raw, omega)
    assert relative_error(contrast_of_raw(raw, omega, torch.float16), exact) > 0.01
    assert 0.08 < relative_error(contrast_of_raw(raw, omega, torch.bfloat16), exact) < 0.12


@pytest.mark.parametrize("omega", OMEGAS)
def test_contrast_at_equal_omegas_is_the_identity_of_the_method(omega: float) -> None:
    raw = outputs(0.03)
    stored = ExpertDifferences.from_outputs(**raw)
    expected = omega * (raw["positive"] - raw["all_"]) - (omega - 1) * (raw["negative"] - raw["null"])
    assert relative_error(stored.contrast(omega, omega), expected) < 0.005


def test_outputs_of_lower_precision_are_subtracted_in_float32() -> None:
    raw = {name: output.to(torch.bfloat16) for name, output in outputs(0.03).items()}
    stored = ExpertDifferences.from_outputs(**raw)
    exact = {name: output.double() for name, output in raw.items()}
    assert relative_error(stored.contrast(2, 2), naive_winning(exact, 2) - naive_losing(exact, 2)) < 0.005
