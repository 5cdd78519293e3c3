"""Plain CPO (Eq. 12). Its balance is linear in the prediction, so nothing stops it at z_w, and it drifts."""

from __future__ import annotations

from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs
from cpo_ray.objectives.preference import (
    NEEDS,
    PreferenceSettings,
    error_change,
    guarded,
    logistic_loss,
    preference_metrics,
)


def cpo_loss(views: tuple[ViewOutputs, ...], settings: PreferenceSettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ (win - lose)) per sample, which is -log sigmoid(β mean[(z_w - z_l)(ε_θ - ε_ref)]).

    For κ and the metrics see `cpo_ray.objectives.preference`.
    """
    (view,) = views
    reference, winning, losing = view.frozen("reference"), view.frozen("winning"), view.frozen("losing")
    displacement = view.prediction - reference
    win = error_change(displacement, winning - reference)
    lose = error_change(displacement, losing - reference)
    metrics = preference_metrics(win, lose, displacement)
    lose = guarded(lose, view.prediction - winning, view.prediction - losing, settings.safeguard)
    loss, share = logistic_loss(win - lose, settings.beta)
    return loss, metrics | share


CPO = Objective(name="cpo", settings=PreferenceSettings, needs=NEEDS, function=cpo_loss)
