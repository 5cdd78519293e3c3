from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cpo_ray.config import ConfigError
from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.config.registry import OBJECTIVES
from cpo_ray.objectives import ExpertDifferences, Objective, ViewOutputs, objective_of
from cpo_ray.objectives.contrast_regression import CONTRAST_REGRESSION, ContrastSettings
from cpo_ray.objectives.cpo import CPO, cpo_loss
from cpo_ray.objectives.cpo_stabilised import CPO_STABILISED, StabilisedSettings, cpo_stabilised_loss, stabilised_losing
from cpo_ray.objectives.dpo import DPO, PairSettings
from cpo_ray.objectives.linear_dpo import LINEAR_DPO, LinearSettings
from cpo_ray.objectives.nft import NFT, NegativeAwareSettings
from cpo_ray.objectives.preference import NEEDS, PreferenceSettings
from cpo_ray.objectives.sft import SFT, SupervisedSettings, sft_loss
from cpo_ray.objectives.win_only import WIN_ONLY, WinOnlySettings

TWO_SIDED = [CPO, CPO_STABILISED]
SETTINGS = StabilisedSettings(name="cpo_s", beta=6.0)  # κ = 3
SUPERVISED = SupervisedSettings(name="sft")
SHAPE = (4, 3, 8, 8)


def by_name(objective: Objective[Any]) -> str:
    return objective.name


def random_case(dtype: torch.dtype = torch.float64) -> ViewOutputs:
    """A prediction that requires gradient, and frozen outputs a few percent apart from it."""
    generator = torch.Generator().manual_seed(0)
    reference, *steps = torch.randn(4, *SHAPE, generator=generator, dtype=dtype)
    moved, winning, losing = (reference + 0.05 * step for step in steps)
    return ViewOutputs(moved.requires_grad_(), reference=reference, winning=winning, losing=losing)


def tensors(view: ViewOutputs) -> tuple[Tensor, Tensor, Tensor]:
    return view.frozen("reference"), view.frozen("winning"), view.frozen("losing")


def two_numbers() -> ViewOutputs:
    """ε_θ = (1, 0), ε_ref = 0, z_w = (1, 2), z_l = (-3, 3): ε_θ is 2 from z_w, 5 from z_l along (4, -3)."""
    prediction = torch.tensor([[1.0, 0.0]], requires_grad=True)
    winning, losing = torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 3.0]])
    return ViewOutputs(prediction, reference=torch.zeros(1, 2), winning=winning, losing=losing)


def gradient(of: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(of.sum(), at, retain_graph=True)[0]


def balance_of(loss: Tensor) -> Tensor:
    """win - lose, recovered from a loss -log sigmoid(-κ (win - lose))."""
    return torch.log(torch.expm1(loss)) / (SETTINGS.beta / 2)


def squared_mean(values: Tensor) -> Tensor:
    return values.square().flatten(1).mean(1)


def norm(values: Tensor) -> Tensor:
    found: Tensor = values.flatten(1).norm(dim=1)
    return found


def test_sft_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    view = ViewOutputs(prediction, target=torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    loss, metrics = SFT((view,), SUPERVISED)
    assert loss.tolist() == [2.5, 0.0]  # (1 + 4) / 2
    assert gradient(loss, prediction).tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert metrics["loss"].tolist() == [2.5, 0.0]


def test_cpo_by_hand() -> None:
    loss, metrics = CPO((two_numbers(),), SETTINGS)
    # win = (4 - 5) / 2, lose = (25 - 18) / 2, so the balance is -4 and the loss -log sigmoid(12).
    numbers = {name: value.item() for name, value in metrics.items() if name != "loss"}
    assert numbers == {
        "win": -0.5,
        "lose": 3.5,
        "margin": 4.0,
        "implicit_accuracy": 1.0,
        "distance_to_reference": 0.5,
        "open": pytest.approx(1 / (1 + math.exp(12))),
    }
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-12)))
    torch.testing.assert_close(metrics["loss"], loss.detach())


def test_stabilised_cpo_by_hand() -> None:
    view = two_numbers()
    prediction, (_, winning, losing) = view.prediction, tensors(view)
    # From (1, 0), away from z_l along (4, -3) / 5, over a length of 2.
    torch.testing.assert_close(stabilised_losing(prediction, winning, losing), torch.tensor([[2.6, -1.2]]))
    loss, metrics = CPO_STABILISED((view,), SETTINGS)
    # The stabilised part is (4 - (2.6² + 1.2²)) / 2 = -2.1; with win = -0.5 the balance is -2.6.
    torch.testing.assert_close(metrics["lose_stabilised"], torch.tensor([-2.1]))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-7.8)))
    assert (metrics["win"].item(), metrics["lose"].item(), metrics["margin"].item()) == (-0.5, 3.5, 4.0)
    # The gradient is κ sigmoid(κ balance) (2 / D) |a| (a/|a| - b/|b|), with a = (0, -2), b = (4, -3), D = 2.
    factor = 3 / (1 + math.exp(7.8))
    expected = torch.tensor([[factor * 2 * (0 - 0.8), factor * 2 * (-1 + 0.6)]])
    torch.testing.assert_close(gradient(loss, prediction), expected)


def test_contrast_regression_by_hand() -> None:
    view = two_numbers()
    loss, metrics = CONTRAST_REGRESSION((view,), ContrastSettings(name="cpo_d", gamma=2.0, beta=6.0))
    # z_w - z_l = (4, -1), so (8, -2) is asked for and (1, 0) is there: (49 + 4) / 2 is left of (64 + 4) / 2.
    torch.testing.assert_close(loss, torch.tensor([3 * 26.5]))
    torch.testing.assert_close(metrics["residual"], torch.tensor([26.5 / 34]))
    torch.testing.assert_close(gradient(loss, view.prediction), torch.tensor([[-21.0, 6.0]]))  # β / 2 · 2 / D · (d - γ c)
    assert (metrics["win"].item(), metrics["lose"].item(), metrics["distance_to_reference"].item()) == (-0.5, 3.5, 0.5)


def test_contrast_regression_is_the_balance_of_cpo_held_by_the_distance_to_the_reference() -> None:
    view = random_case()
    settings = ContrastSettings(name="cpo_d", gamma=3.0, beta=50.0)
    _, metrics = CONTRAST_REGRESSION((view,), settings)
    constant = settings.gamma**2 * squared_mean(view.frozen("winning") - view.frozen("losing"))
    by_parts = settings.gamma * (metrics["win"] - metrics["lose"]) + metrics["distance_to_reference"] + constant
    torch.testing.assert_close(metrics["loss"], 25 * by_parts)


def test_the_winning_side_alone_by_hand() -> None:
    loss, metrics = WIN_ONLY((two_numbers(),), WinOnlySettings(name="win_only", beta=6.0))
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-1.5)))
    assert metrics["win"].item() == -0.5 and "lose" not in metrics


def test_nft_by_hand() -> None:
    view, settings = two_numbers(), NegativeAwareSettings(name="nft", mixing=0.5)
    loss, _ = NFT((view,), settings)
    # v+ = (0.5, 0) is (0.5, 2) from z_w, and v- = (-0.5, 0) is (2.5, 3) from z_l.
    torch.testing.assert_close(loss, torch.tensor([4.25 / 2 + 15.25 / 2]))
    torch.testing.assert_close(gradient(loss, view.prediction), torch.tensor([[-1.5, 0.5]]))
    there = torch.tensor([[4.0, -1.0]], requires_grad=True)  # (z_w - z_l) / (2 · 0.5) from the reference
    loss, _ = NFT((replace(view, prediction=there),), settings)
    assert gradient(loss, there).tolist() == [[0.0, 0.0]]


def test_dpo_by_hand() -> None:
    prediction = torch.tensor([[1.0, 0.0]], requires_grad=True)
    better = ViewOutputs(prediction, target=torch.tensor([[2.0, 0.0]]), reference=torch.tensor([[0.0, 0.0]]))
    worse = ViewOutputs(torch.tensor([[3.0, 1.0]]), target=torch.tensor([[1.0, 1.0]]), reference=torch.tensor([[2.0, 1.0]]))
    loss, metrics = DPO((better, worse), PairSettings(name="dpo", beta=6.0))
    # win = (1 - 4) / 2, lose = (4 - 1) / 2, so the balance is -3 and the loss -log sigmoid(9).
    assert (metrics["win"].item(), metrics["lose"].item(), metrics["margin"].item()) == (-1.5, 1.5, 3.0)
    assert metrics["distance_to_reference"].item() == 0.5
    torch.testing.assert_close(loss.item(), math.log1p(math.exp(-9)))
    # κ sigmoid(-9) · 2 / D · (ε_θ - ε) = 3 · sigmoid(-9) · (-1, 0)
    torch.testing.assert_close(gradient(loss, prediction), torch.tensor([[-3 / (1 + math.exp(9)), 0.0]]))


@pytest.mark.parametrize(("beta", "weight"), [(0.25, 0.3), (6.0, 0.1)])
def test_linear_dpo_by_hand(beta: float, weight: float) -> None:
    view = two_numbers()
    loss, metrics = LINEAR_DPO((view,), LinearSettings(name="linear_dpo", beta=beta))
    torch.testing.assert_close(metrics["open"], torch.tensor([weight]))  # 0.2 β · (-4) + 0.5, at least 0.1
    torch.testing.assert_close(loss, torch.tensor([beta / 2 * weight * -4]))
    torch.testing.assert_close(gradient(loss, view.prediction), torch.tensor([[-4.0, 1.0]]) * beta / 2 * weight)


def test_a_normalised_margin_gives_every_sample_its_own_beta() -> None:
    view = random_case()
    twice = replace(view, winning=view.frozen("losing") + 2 * (view.frozen("winning") - view.frozen("losing")))
    settings = StabilisedSettings(name="cpo_s", margin="normalised", normalised_beta=0.5)
    for each in (view, twice):
        betas = settings.betas(each.frozen("winning"), each.frozen("losing"))
        torch.testing.assert_close(betas, 0.5 / (squared_mean(each.frozen("winning") - each.frozen("losing")) + 1e-4))
        loss, metrics = cpo_stabilised_loss((each,), settings)
        torch.testing.assert_close(loss, functional.softplus(betas / 2 * (metrics["win"] + metrics["lose_stabilised"])))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"margin": "normalised", "beta": 7.0}, "beta = 7 has no effect with margin = 'normalised'; leave it out"),
        ({"normalised_beta": 0.1}, "normalised_beta = 0.1 has no effect with margin = 'fixed'; leave it out"),
    ],
)
def test_a_margin_with_a_setting_of_the_other_kind_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StabilisedSettings(name="cpo_s", **given)


def test_a_baseline_takes_no_beta_that_its_margin_leaves_without_effect() -> None:
    main = PreferenceSettings(name="cpo", beta=7.0, omega_win=1.5)
    baseline = StabilisedSettings(name="cpo_s", margin="normalised").completed(main)
    assert baseline == StabilisedSettings(name="cpo_s", margin="normalised", omega_win=1.5)
    assert StabilisedSettings(name="cpo_s").completed(main) == StabilisedSettings(name="cpo_s", beta=7.0, omega_win=1.5)


def test_the_safeguard_by_hand() -> None:
    view = two_numbers()
    free = CPO((view,), SETTINGS)[0]
    for safeguard, scale in ((0.5, 1 / 3), (0.0, 2 / 3)):
        loss, _ = CPO((view,), SETTINGS.model_copy(update={"safeguard": safeguard}))
        assert loss.item() == free.item()
        # <a, b> = 6 and |a|² = 4 for a = (0, -2), b = (4, -3): of b the share (1 - μ) 4 / 6 is kept.
        expected = 3 / (1 + math.exp(12)) * torch.tensor([[-4 * scale, -2 + 3 * scale]])
        torch.testing.assert_close(gradient(loss, view.prediction), expected)


@pytest.mark.parametrize("objective", [CPO, CPO_STABILISED, LINEAR_DPO], ids=by_name)
@pytest.mark.parametrize("safeguard", [0.0, 0.4, 1.0])
def test_with_a_safeguard_no_step_takes_the_winner_more_than_its_share(objective: Objective[Any], safeguard: float) -> None:
    view = random_case()
    reference, winning, losing = tensors(view)
    # z_l lies behind z_w as seen from the model, and a little aside: the push acts against the pull.
    view = replace(view, losing=2 * winning - view.prediction.detach() + 0.3 * (losing - reference))
    toward = (view.prediction - winning).detach().flatten(1)

    def along_the_pull(guard: float | None) -> tuple[Tensor, Tensor]:
        loss, metrics = objective((view,), objective.settings(name=objective.name, beta=6.0, safeguard=guard))
        return (gradient(loss, view.prediction).flatten(1) * toward).sum(1), metrics["open"]

    free, factor = along_the_pull(None)
    alone = SETTINGS.beta / 2 * factor * 2 * squared_mean(toward)  # what the winning part alone would do
    assert bool((free < alone).all())
    torch.testing.assert_close(along_the_pull(safeguard)[0], torch.maximum(free, safeguard * alone), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
@pytest.mark.parametrize("beta", [1.0, 5000.0])
def test_loss_is_ln_2_at_the_reference(objective: Objective[Any], beta: float) -> None:
    view = random_case(torch.float32)
    at_reference = replace(view, prediction=view.frozen("reference").clone())
    loss, metrics = objective((at_reference,), StabilisedSettings(name=objective.name, beta=beta))
    assert torch.equal(loss, torch.full((4,), math.log(2)))
    for name in ("win", "lose", "margin", "implicit_accuracy", "distance_to_reference"):
        assert torch.equal(metrics[name], torch.zeros(4)), name


def test_metrics_are_the_parts_as_the_paper_writes_them() -> None:
    view = random_case()
    prediction, (reference, winning, losing) = view.prediction, tensors(view)
    win = squared_mean(winning - prediction) - squared_mean(winning - reference)
    lose = squared_mean(losing - prediction) - squared_mean(losing - reference)
    for function in (cpo_loss, cpo_stabilised_loss):
        _, metrics = function((view,), SETTINGS)
        torch.testing.assert_close(metrics["win"], win.detach())
        torch.testing.assert_close(metrics["lose"], lose.detach())
        torch.testing.assert_close(metrics["margin"], (lose - win).detach())
        assert torch.equal(metrics["implicit_accuracy"], (win < lose).float())
        assert 0 < metrics["implicit_accuracy"].mean() < 1  # the case has both kinds
        torch.testing.assert_close(metrics["distance_to_reference"], squared_mean(prediction - reference).detach())
        assert {value.shape for value in metrics.values()} == {(4,)}
        assert not any(value.requires_grad for value in CPO_STABILISED((view,), SETTINGS)[1].values())


def test_cpo_is_the_logistic_loss_of_an_inner_product() -> None:
    view = random_case()
    prediction, (reference, winning, losing) = view.prediction, tensors(view)
    inner = ((winning - losing) * (prediction - reference)).flatten(1).mean(1)
    settings = PreferenceSettings(name="cpo", beta=5000.0)
    loss, _ = cpo_loss((view,), settings)
    torch.testing.assert_close(loss, -functional.logsigmoid(settings.beta * inner))


def test_cpo_is_linear_in_the_prediction_and_so_has_no_attractor() -> None:
    view = random_case()
    prediction, (reference, winning, losing) = view.prediction, tensors(view)

    def balance(at: Tensor) -> Tensor:
        return balance_of(cpo_loss((replace(view, prediction=at),), SETTINGS)[0])

    step = prediction.detach() - reference
    torch.testing.assert_close(balance(reference + 20 * step), 20 * balance(reference + step))
    # At z_w itself, and far behind it, the pull is what it was at the start.
    for at in (reference, winning, winning + 3 * (winning - losing)):
        point = at.clone().requires_grad_()
        slope = gradient(balance(point), point)
        torch.testing.assert_close(slope, -2 * (winning - losing) / math.prod(SHAPE[1:]))


def test_stabilised_target_is_as_far_away_as_the_winning_one() -> None:
    view = random_case()
    prediction, (_, winning, losing) = view.prediction, tensors(view)
    stabilised = stabilised_losing(prediction, winning, losing)
    assert not stabilised.requires_grad
    torch.testing.assert_close(norm(stabilised - prediction), norm(winning - prediction))
    cosine = functional.cosine_similarity((stabilised - prediction).flatten(1), (prediction - losing).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_stabilised_losing_gradient_has_the_original_direction_and_the_winning_norm() -> None:
    view = random_case()
    prediction, (reference, winning, losing) = view.prediction, tensors(view)
    target = stabilised_losing(prediction, winning, losing)
    stabilised = gradient(squared_mean(target - prediction) - squared_mean(target - reference), prediction)
    original = gradient(-squared_mean(losing - prediction), prediction)
    winning_part = gradient(squared_mean(winning - prediction), prediction)
    torch.testing.assert_close(norm(stabilised), norm(winning_part))
    cosine = functional.cosine_similarity(stabilised.flatten(1), original.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_stabilised_gradient_is_the_difference_of_two_directions() -> None:
    view = random_case()
    prediction, (_, winning, losing) = view.prediction, tensors(view)
    loss, _ = cpo_stabilised_loss((view,), SETTINGS)
    a, b = ((prediction - z).detach().flatten(1) for z in (winning, losing))
    a_norm, b_norm = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    direction = 2 * a_norm * (a / a_norm - b / b_norm)
    kappa, elements = SETTINGS.beta / 2, a.shape[1]
    sigmoid_factor = torch.sigmoid(kappa * balance_of(loss.detach())).unsqueeze(1)
    expected = kappa * sigmoid_factor * direction / elements
    torch.testing.assert_close(gradient(loss, prediction).flatten(1), expected)


@pytest.mark.parametrize("beyond", [0.0, 0.5, 4.0])
def test_stabilised_gradient_vanishes_on_the_ray_beyond_the_winning_target(beyond: float) -> None:
    view = random_case()
    reference, winning, losing = tensors(view)
    ray = winning - losing

    def gradient_at(point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        return gradient(cpo_stabilised_loss((replace(view, prediction=point),), SETTINGS)[0], point)

    before = gradient_at(losing + 0.5 * ray).norm()
    assert gradient_at(winning + beyond * ray).norm() < 1e-12 * before
    assert gradient_at(reference).norm() > 0.1 * before


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
@pytest.mark.parametrize("place", ["losing", "winning"])
def test_no_nan_where_a_norm_is_zero(objective: Objective[Any], place: str) -> None:
    view = random_case(torch.float32)
    _, winning, losing = tensors(view)
    prediction = (losing if place == "losing" else winning).clone().requires_grad_()
    loss, metrics = objective((replace(view, prediction=prediction),), SETTINGS)
    slope = gradient(loss, prediction)
    assert all(bool(value.isfinite().all()) for value in (loss, slope, *metrics.values()))


def test_at_the_losing_target_only_the_winning_part_pulls() -> None:
    view = random_case()
    _, winning, losing = tensors(view)
    prediction = losing.clone().requires_grad_()
    slope = gradient(cpo_stabilised_loss((replace(view, prediction=prediction),), SETTINGS)[0], prediction)
    cosine = functional.cosine_similarity(slope.flatten(1), (losing - winning).flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_mean_with_half_beta_equals_sum_with_beta_over_twice_the_elements() -> None:
    view = random_case()
    prediction, (reference, winning, losing) = view.prediction, tensors(view)

    def summed_change(z: Tensor) -> Tensor:
        return ((z - prediction).square() - (z - reference).square()).flatten(1).sum(1)

    kappa_sum = 5000.0 / (2 * math.prod(SHAPE[1:]))
    expected = -functional.logsigmoid(-kappa_sum * (summed_change(winning) - summed_change(losing)))
    torch.testing.assert_close(cpo_loss((view,), PreferenceSettings(name="cpo", beta=5000.0))[0], expected)


@pytest.mark.parametrize("function", [cpo_loss, cpo_stabilised_loss])
def test_samples_do_not_see_each_other(function: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> None:
    view = random_case()
    together, _ = function((view,), SETTINGS)
    for index in range(4):
        one = {name: getattr(view, name)[index : index + 1] for name in ("prediction", "reference", "winning", "losing")}
        alone, _ = function((ViewOutputs(**one),), SETTINGS)
        torch.testing.assert_close(alone[0], together[index])


@pytest.mark.parametrize("objective", [SFT, *TWO_SIDED], ids=by_name)
def test_a_loss_means_the_same_in_every_bucket(objective: Objective[Any]) -> None:
    """The same errors in each element give the same loss, whatever the shape of the latent; so β needs no change."""
    losses = set()
    for shape in ((2, 4, 8, 8), (2, 4, 12, 6), (2, 4, 5, 10)):
        prediction = torch.zeros(shape, dtype=torch.float64)
        errors = dict(zip(("target", "reference", "winning", "losing"), (0.5, 0.25, 1.0, -2.0), strict=True))
        view = ViewOutputs(prediction, **{name: prediction + error for name, error in errors.items()})
        losses |= {round(loss, 12) for loss in objective((view,), SETTINGS)[0].tolist()}
    assert len(losses) == 1


def test_small_steps_from_the_reference_keep_their_digits_in_float32() -> None:
    """Early in training the model has moved by 1e-5 of its output, and κ = 2500 amplifies what is lost."""
    far = random_case(torch.float32)
    reference, winning, losing = tensors(far)
    prediction = (reference + 1e-4 * (far.prediction - reference)).detach()
    near = replace(far, prediction=prediction)
    naive = squared_mean(winning - prediction) - squared_mean(winning - reference)
    doubles = ViewOutputs(prediction.double(), None, reference.double(), winning.double(), losing.double())
    for function in (cpo_loss, cpo_stabilised_loss):
        _, exact = function((doubles,), SETTINGS)
        _, single = function((near,), SETTINGS)
        for part in ("win", "lose"):
            torch.testing.assert_close(single[part].double(), exact[part], rtol=1e-4, atol=0)
        assert bool(((naive - exact["win"]).abs() > 1e-3 * exact["win"].abs()).any())


@pytest.mark.parametrize("objective", TWO_SIDED, ids=by_name)
def test_half_precision_predictions_are_compared_in_float32(objective: Objective[Any]) -> None:
    view = random_case(torch.float32)
    half = view.prediction.detach().to(torch.bfloat16)
    loss, _ = objective((replace(view, prediction=half),), SETTINGS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, objective((replace(view, prediction=half.float()),), SETTINGS)[0])


def test_each_objective_names_what_it_needs() -> None:
    found = {name: OBJECTIVES.load(name) for name in OBJECTIVES.names}
    assert {name: set(objective.needs) for name, objective in found.items()} == {
        "sft": {"target"},
        "sft_all": {"target"},
        "cpo": {"reference", "winning", "losing"},
        "cpo_s": {"reference", "winning", "losing"},
        "cpo_d": {"reference", "winning", "losing"},
        "dpo": {"target", "reference"},
        "win_only": {"reference", "winning"},
        "nft": {"reference", "winning", "losing"},
        "linear_dpo": {"reference", "winning", "losing"},
    }
    assert all(objective.name == name for name, objective in found.items())
    assert [name for name, objective in found.items() if objective.views != ((0, 0),)] == ["dpo"]
    assert [name for name, objective in found.items() if not objective.calls_expert] == ["sft", "sft_all", "dpo"]
    assert [name for name, objective in found.items() if objective.supervised] == ["sft", "sft_all"]


def test_only_what_is_needed_is_made_of_the_expert_s_outputs() -> None:
    positive, negative, null, all_, reference = torch.arange(1.0, 6.0).reshape(5, 1, 1)
    stored = ExpertDifferences.from_outputs(reference, positive, negative, null, all_)
    settings = PreferenceSettings(name="cpo", omega_win=1.5, omega_lose=3.0)
    view = CPO.outputs(torch.zeros(1, 1), None, None, stored, settings)
    # z_w = -0.5 · 2 + 1.5 · 1, z_l = -2 · 3 + 3 · 4
    assert [float(view.frozen(name)) for name in ("reference", "winning", "losing")] == [5.0, 0.5, 6.0]
    one_sided = Objective("won", PreferenceSettings, frozenset({"winning"}), cpo_loss)
    assert one_sided.outputs(torch.zeros(1, 1), None, None, stored, settings).losing is None
    supervised = SFT.outputs(torch.zeros(1, 1), torch.ones(1, 1), None, stored, SUPERVISED)
    assert supervised.winning is None and supervised.losing is None


def test_mistakes_are_answered_in_one_sentence() -> None:
    view = random_case(torch.float32)
    with pytest.raises(
        ConfigError, match=r"there is no objective 'spo'; choose one of sft, sft_all, cpo, cpo_s, .*, or give your own"
    ):
        objective_of(ObjectiveSettings(name="spo"))
    with pytest.raises(ConfigError, match="'cpo' is not an objective that takes SupervisedSettings"):
        objective_of(SupervisedSettings(name="cpo"))
    with pytest.raises(ValueError, match="no 'target' output; name it in the objective's needs"):
        SFT((view,), SUPERVISED)
    with pytest.raises(ValueError, match=r"prediction of shape \(1, 3, 8, 8\)"):
        CPO((replace(view, prediction=view.prediction[:1]),), SETTINGS)
    with pytest.raises(ValueError, match="greater than 0"):
        PreferenceSettings(name="cpo", beta=0)


def test_an_objective_that_cannot_be_trained_with_is_refused() -> None:
    with pytest.raises(ValueError, match="'own' needs the 'winning' output, which is made with omega_win"):
        Objective("own", SupervisedSettings, frozenset({"winning"}), sft_loss)
    for name in ("Own", "a/b", "expert", ""):
        with pytest.raises(ValueError, match="an objective is called"):
            Objective(name, PreferenceSettings, NEEDS, cpo_loss)
    with pytest.raises(ValueError, match="'own' has no needs or no views"):
        Objective("own", PreferenceSettings, frozenset(), cpo_loss)
    mean = Objective("own", PreferenceSettings, NEEDS, lambda views, settings: (views[0].prediction.mean(), {}))
    with pytest.raises(ValueError, match=r"'own' gave a 'loss' of shape \(\) for a batch of 4; it must give"):
        mean((random_case(),), SETTINGS)
