"""Plain CPO (Eq. 12). Its balance is linear in the prediction, so nothing stops it at z_w, and it drifts."""

from __future__ import annotations

from cpo_ray.objectives.base import LossAndMetrics, Objective, ViewOutputs
from cpo_ray.objectives.preference import NEEDS, PreferenceSettings, error_change, logistic_loss, preference_metrics


def cpo_loss(views: tuple[ViewOutputs, ...], settings: PreferenceSettings) -> LossAndMetrics:
    """Return -log sigmoid(-κ (win - lose)) per sample, which is -log sigmoid(β mean[(z_w - z_l)(ε_θ - ε_ref)]).

    For κ and the metrics see `cpo_ray.objectives.preference`.
    """
    (view,) = views
    reference = view.frozen("reference")
    displacement = view.prediction - reference
    win = error_change(displacement, view.frozen("winning") - reference)
    lose = error_change(displacement, view.frozen("losing") - reference)
    return logistic_loss(win - lose, settings), preference_metrics(win, lose, displacement)


CPO = Objective(name="cpo", settings=PreferenceSettings, needs=NEEDS, function=cpo_loss)
