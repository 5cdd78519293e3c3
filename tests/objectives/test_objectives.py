from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cpo_ray.objectives import OBJECTIVES, FrozenOutputs, Objective, ObjectiveParameters, get_objective
from cpo_ray.objectives.cpo import cpo_loss
from cpo_ray.objectives.cpo_stabilised import cpo_stabilised_loss, stabilised_losing

TWO_SIDED = [OBJECTIVES["cpo"], OBJECTIVES["cpo_s"]]
PARAMETERS = ObjectiveParameters(beta=6.0)  # κ = 3
SHAPE = (4, 3, 8, 8)


def by_name(objective: Objective) -> str:
    return objective.name


def random_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, FrozenOutputs]:
    """A prediction that requires gradient, and frozen outputs a few percent apart from it."""
    generator = torch.Generator().manual_seed(0)
    reference, *steps = torch.randn(4, *SHAPE, generator=generator, dtype=dtype)
    moved, winning, losing = (reference + 0.05 * step for step in steps)
    return moved.requires_grad_(), FrozenOutputs(reference=reference, winning=winning, losing=losing)


def tensors(frozen: FrozenOutputs) -> tuple[Tensor, Tensor, Tensor]:
    return frozen.get("reference"), frozen.get("winning"), frozen.get("losing")


def two_numbers() -> tuple[Tensor, FrozenOutputs]:
    """ε_θ = (1, 0), ε_ref = 0, z_w = (1, 2), z_l = (-3, 3): ε_θ is 2 from z_w, 5 from z_l along (4, -3)."""
    prediction = torch.tensor([[1.0, 0.0]], requires_grad=True)
    frozen = FrozenOutputs(reference=torch.zeros(1, 2), winning=torch.tensor([[1.0, 2.0]]), losing=torch.tensor([[-3.0, 3.0]]))
    return prediction, frozen


def gradient(of: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(of.sum(), at, retain_graph=True)[0]


def balance_of(loss: Tensor) -> Tensor:
    """win - lose, recovered from a loss -log sigmoid(-κ (win - lose))."""
    return torch.log(torch.expm1(loss)) / (PARAMETERS.beta / 2)


def squared_mean(values: Tensor) -> Tensor:
    return values.square().flatten(1).mean(1)


def norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def test_sft_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    frozen = FrozenOutputs(target=torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    loss, metrics = get_objective("sft")(prediction, frozen, PARAMETERS)
    assert loss.tolist() == [2.5, 0.0]  # (1 + 4) / 2
    assert gradient(loss, prediction).tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert metrics["loss"].tolist() == [2.5, 0.0]


def test_cpo_by_hand() -> None:
    prediction, frozen = two_numbers()
    loss, metrics = get_objective("cpo")(prediction, frozen, PARAMETERS)
    # win = (4 - 5) / 2, lose = (25 - 18) / 2, so the balance is -4 and the loss -log sigmoid(12).
    numbers = {name: value.item() for name, value in metrics.items() if name != "loss"}
    assert numbers == {
        "win": -0.5,
        "lose": 3.5,
        "margin": 4.0,
        "implicit_accuracy": 1.0,
        "distance_to_reference": 0.5,
    }
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-12)))
    torch.testing.assert_close(metrics["loss"], loss.detach())


def test_stabilised_cpo_by_hand() -> None:
    prediction, frozen = two_numbers()
    _, winning, losing = tensors(frozen)
    # From (1, 0), away from z_l along (4, -3) / 5, over a length of 2.
    torch.testing.assert_close(stabilised_losing(prediction, winning, losing), torch.tensor([[2.6, -1.2]]))
    loss, metrics = get_objective("cpo_s")(prediction, frozen, PARAMETERS)
    # The stabilised part is (4 - (2.6² + 1.2²)) / 2 = -2.1; with win = -0.5 the balance is -2.6.
    torch.testing.assert_close(metrics["lose_stabilised"], torch.tensor([-2.1]))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-7.8)))
    assert (metrics["win"].item(), metrics["lose"].item(), metrics["margin"].item()) == (-0.5, 3.5, 4.0)
    # The gradient is κ sigmoid(κ balance) (2 / D) |a| (a/|a| - b/|b|), with a = (0, -2), b = (4, -3), D = 2.
    factor = 3 / (1 + math.exp(7.8))
    expected = torch.tensor([[factor * 2 * (0 - 0.8), factor * 2 * (-1 + 0.6)]])
    torch.testing.assert_close(gradient(loss, prediction), expected)


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
@pytest.mark.parametrize("beta", [1.0, 5000.0])
def test_loss_is_ln_2_at_the_reference(objective: Objective, beta: float) -> None:
    _, frozen = random_case(torch.float32)
    loss, metrics = objective(frozen.get("reference").clone(), frozen, ObjectiveParameters(beta))
    assert torch.equal(loss, torch.full((4,), math.log(2)))
    for name in ("win", "lose", "margin", "implicit_accuracy", "distance_to_reference"):
        assert torch.equal(metrics[name], torch.zeros(4)), name


def test_metrics_are_the_parts_as_the_paper_writes_them() -> None:
    prediction, frozen = random_case()
    reference, winning, losing = tensors(frozen)
    win = squared_mean(winning - prediction) - squared_mean(winning - reference)
    lose = squared_mean(losing - prediction) - squared_mean(losing - reference)
    for function in (cpo_loss, cpo_stabilised_loss):
        _, metrics = function(prediction, frozen, PARAMETERS)
        torch.testing.assert_close(metrics["win"], win.detach())
        torch.testing.assert_close(metrics["lose"], lose.detach())
        torch.testing.assert_close(metrics["margin"], (lose - win).detach())
        assert torch.equal(metrics["implicit_accuracy"], (win < lose).float())
        assert 0 < metrics["implicit_accuracy"].mean() < 1  # the case has both kinds
        torch.testing.assert_close(metrics["distance_to_reference"], squared_mean(prediction - reference).detach())
        assert {value.shape for value in metrics.values()} == {(4,)}
        assert not any(value.requires_grad for value in metrics.values())


def test_cpo_is_the_logistic_loss_of_an_inner_product() -> None:
    prediction, frozen = random_case()
    reference, winning, losing = tensors(frozen)
    inner = ((winning - losing) * (prediction - reference)).flatten(1).mean(1)
    parameters = ObjectiveParameters(beta=5000.0)
    loss, _ = cpo_loss(prediction, frozen, parameters)
    torch.testing.assert_close(loss, -functional.logsigmoid(parameters.beta * inner))


def test_cpo_is_linear_in_the_prediction_and_so_has_no_attractor() -> None:
    prediction, frozen = random_case()
    reference, winning, losing = tensors(frozen)

    def balance(at: Tensor) -> Tensor:
        return balance_of(cpo_loss(at, frozen, PARAMETERS)[0])

    step = prediction.detach() - reference
    torch.testing.assert_close(balance(reference + 20 * step), 20 * balance(reference + step))
    # At z_w itself, and far behind it, the pull is what it was at the start.
    for at in (reference, winning, winning + 3 * (winning - losing)):
        point = at.clone().requires_grad_()
        slope = gradient(balance(point), point)
        torch.testing.assert_close(slope, -2 * (winning - losing) / math.prod(SHAPE[1:]))


def test_stabilised_target_is_as_far_away_as_the_winning_one() -> None:
    prediction, frozen = random_case()
    _, winning, losing = tensors(frozen)
    stabilised = stabilised_losing(prediction, winning, losing)
    assert not stabilised.requires_grad
    torch.testing.assert_close(norm(stabilised - prediction), norm(winning - prediction))
    cosine = functional.cosine_similarity((stabilised - prediction).flatten(1), (prediction - losing).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_stabilised_losing_gradient_has_the_original_direction_and_the_winning_norm() -> None:
    prediction, frozen = random_case()
    reference, winning, losing = tensors(frozen)
    target = stabilised_losing(prediction, winning, losing)
    stabilised = gradient(squared_mean(target - prediction) - squared_mean(target - reference), prediction)
    original = gradient(-squared_mean(losing - prediction), prediction)
    winning_part = gradient(squared_mean(winning - prediction), prediction)
    torch.testing.assert_close(norm(stabilised), norm(winning_part))
    cosine = functional.cosine_similarity(stabilised.flatten(1), original.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_stabilised_gradient_is_the_difference_of_two_directions() -> None:
    prediction, frozen = random_case()
    _, winning, losing = tensors(frozen)
    loss, _ = cpo_stabilised_loss(prediction, frozen, PARAMETERS)
    a, b = ((prediction - z).detach().flatten(1) for z in (winning, losing))
    a_norm, b_norm = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    direction = 2 * a_norm * (a / a_norm - b / b_norm)
    kappa, elements = PARAMETERS.beta / 2, a.shape[1]
    sigmoid_factor = torch.sigmoid(kappa * balance_of(loss.detach())).unsqueeze(1)
    expected = kappa * sigmoid_factor * direction / elements
    torch.testing.assert_close(gradient(loss, prediction).flatten(1), expected)


@pytest.mark.parametrize("beyond", [0.0, 0.5, 4.0])
def test_stabilised_gradient_vanishes_on_the_ray_beyond_the_winning_target(beyond: float) -> None:
    _, frozen = random_case()
    reference, winning, losing = tensors(frozen)
    ray = winning - losing

    def gradient_at(point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        return gradient(cpo_stabilised_loss(point, frozen, PARAMETERS)[0], point)

    before = gradient_at(losing + 0.5 * ray).norm()
    assert gradient_at(winning + beyond * ray).norm() < 1e-12 * before
    assert gradient_at(reference).norm() > 0.1 * before


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
@pytest.mark.parametrize("place", ["losing", "winning"])
def test_no_nan_where_a_norm_is_zero(objective: Objective, place: str) -> None:
    _, frozen = random_case(torch.float32)
    _, winning, losing = tensors(frozen)
    prediction = (losing if place == "losing" else winning).clone().requires_grad_()
    loss, metrics = objective(prediction, frozen, PARAMETERS)
    slope = gradient(loss, prediction)
    assert all(bool(value.isfinite().all()) for value in (loss, slope, *metrics.values()))


def test_at_the_losing_target_only_the_winning_part_pulls() -> None:
    _, frozen = random_case()
    _, winning, losing = tensors(frozen)
    prediction = losing.clone().requires_grad_()
    slope = gradient(cpo_stabilised_loss(prediction, frozen, PARAMETERS)[0], prediction)
    cosine = functional.cosine_similarity(slope.flatten(1), (losing - winning).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_mean_with_half_beta_equals_sum_with_beta_over_twice_the_elements() -> None:
    prediction, frozen = random_case()
    reference, winning, losing = tensors(frozen)

    def summed_change(z: Tensor) -> Tensor:
        return ((z - prediction).square() - (z - reference).square()).flatten(1).sum(1)

    kappa_sum = 5000.0 / (2 * math.prod(SHAPE[1:]))
    expected = -functional.logsigmoid(-kappa_sum * (summed_change(winning) - summed_change(losing)))
    torch.testing.assert_close(cpo_loss(prediction, frozen, ObjectiveParameters(5000.0))[0], expected)


@pytest.mark.parametrize("function", [cpo_loss, cpo_stabilised_loss])
def test_samples_do_not_see_each_other(function: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> None:
    prediction, frozen = random_case()
    together, _ = function(prediction, frozen, PARAMETERS)
    for index in range(4):
        one = FrozenOutputs(**{name: getattr(frozen, name)[index : index + 1] for name in ("reference", "winning", "losing")})
        alone, _ = function(prediction[index : index + 1], one, PARAMETERS)
        torch.testing.assert_close(alone[0], together[index])


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=by_name)
def test_a_loss_means_the_same_in_every_bucket(objective: Objective) -> None:
    """The same errors in each element give the same loss, whatever the shape of the latent; so β needs no change."""
    losses = set()
    for shape in ((2, 4, 8, 8), (2, 4, 12, 6), (2, 4, 5, 10)):
        prediction = torch.zeros(shape, dtype=torch.float64)
        errors = dict(zip(("target", "reference", "winning", "losing"), (0.5, 0.25, 1.0, -2.0), strict=True))
        frozen = FrozenOutputs(**{name: prediction + error for name, error in errors.items()})
        losses |= {round(loss, 12) for loss in objective(prediction, frozen, PARAMETERS)[0].tolist()}
    assert len(losses) == 1


def test_small_steps_from_the_reference_keep_their_digits_in_float32() -> None:
    """Early in training the model has moved by 1e-5 of its output, and κ = 2500 amplifies what is lost."""
    far, frozen = random_case(torch.float32)
    reference, winning, losing = tensors(frozen)
    prediction = (reference + 1e-4 * (far - reference)).detach()
    naive = squared_mean(winning - prediction) - squared_mean(winning - reference)
    doubles = FrozenOutputs(reference=reference.double(), winning=winning.double(), losing=losing.double())
    for function in (cpo_loss, cpo_stabilised_loss):
        _, exact = function(prediction.double(), doubles, PARAMETERS)
        _, single = function(prediction, frozen, PARAMETERS)
        for part in ("win", "lose"):
            torch.testing.assert_close(single[part].double(), exact[part], rtol=1e-4, atol=0)
        assert bool(((naive - exact["win"]).abs() > 1e-3 * exact["win"].abs()).any())


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
def test_half_precision_predictions_are_compared_in_float32(objective: Objective) -> None:
    prediction, frozen = random_case(torch.float32)
    half = prediction.detach().to(torch.bfloat16)
    loss, _ = objective(half, frozen, PARAMETERS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, objective(half.float(), frozen, PARAMETERS)[0])


def test_each_objective_names_what_it_needs() -> None:
    assert {name: set(objective.needs) for name, objective in OBJECTIVES.items()} == {
        "sft": {"target"},
        "cpo": {"reference", "expert"},
        "cpo_s": {"reference", "expert"},
    }


def test_mistakes_are_answered_in_one_sentence() -> None:
    prediction, frozen = random_case(torch.float32)
    with pytest.raises(ValueError, match="choose one of cpo, cpo_s, sft"):
        get_objective("dpo2")
    with pytest.raises(ValueError, match="no 'target' output"):
        get_objective("sft")(prediction, frozen, PARAMETERS)
    with pytest.raises(ValueError, match=r"prediction of shape \(1, 3, 8, 8\)"):
        get_objective("cpo")(prediction[:1], frozen, PARAMETERS)
    with pytest.raises(ValueError, match="beta is 0"):
        ObjectiveParameters(beta=0)
