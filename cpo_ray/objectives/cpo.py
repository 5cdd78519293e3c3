"""Plain CPO (Eq. 12). Its balance is linear in the prediction, so nothing stops it at z_w, and it drifts."""

from __future__ import annotations

from torch import Tensor

from cpo_ray.objectives.base import FrozenOutputs, LossAndMetrics, Objective, ObjectiveParameters
from cpo_ray.objectives.preference import error_change, logistic_loss, with_metrics


def cpo_loss(prediction: Tensor, frozen: FrozenOutputs, parameters: ObjectiveParameters) -> LossAndMetrics:
    """-log sigmoid(-κ (win - lose)) per sample, which is -log sigmoid(β mean[(z_w - z_l)(ε_θ - ε_ref)]).

    For κ and the metrics see `cpo_ray.objectives.preference`.
    """
    reference = frozen.get("reference")
    displacement = prediction - reference
    win = error_change(displacement, frozen.get("winning") - reference)
    lose = error_change(displacement, frozen.get("losing") - reference)
    return with_metrics(logistic_loss(win - lose, parameters), win, lose, displacement)


CPO = Objective(name="cpo", needs=frozenset({"reference", "expert"}), function=cpo_loss)
