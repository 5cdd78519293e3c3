"""The types that every objective uses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor

from cpo_ray.config.objective import ObjectiveSettings
from cpo_ray.objectives.expert_targets import ExpertDifferences

FrozenName = Literal["target", "reference", "winning", "losing"]
LossAndMetrics = tuple[Tensor, dict[str, Tensor]]
Settings = TypeVar("Settings", bound=ObjectiveSettings)

#: Frozen output → the setting that it is made with (CPO, Eq. 10 and 11).
_OMEGAS: dict[FrozenName, str] = {"winning": "omega_win", "losing": "omega_lose"}
#: A training's folder has its objective's name, and these names are taken by other folders and rows of tables.
_TAKEN = ("base", "expert", "evaluation")


class View(NamedTuple):
    """One prediction of a sample: the picture that the model sees with noise, and the text that it is told, both by number."""

    picture: int
    text: int


@dataclass(frozen=True, eq=False)
class ViewOutputs:
    """The outputs for one view of B samples: (B, ...) tensors in the model's prediction space.

    - prediction: ε_θ, the trained model's output; the only one with a gradient.
    - target: what a perfect denoiser predicts.
    - reference: ε_ref, the frozen base model's output.
    - winning, losing: z_w and z_l of CPO, Eq. 10 and 11.

    All but the prediction are float32, and None if the objective does not need them.
    """

    prediction: Tensor
    target: Tensor | None = None
    reference: Tensor | None = None
    winning: Tensor | None = None
    losing: Tensor | None = None

    def frozen(self, name: FrozenName) -> Tensor:
        """Return one of the four frozen outputs. Raises ValueError if it is missing."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ValueError(f"the batch holds no {name!r} output; name it in the objective's needs, so that it is produced")
        return tensor


@dataclass(frozen=True)
class Objective(Generic[Settings]):
    """A loss with everything needed to train with it.

    - needs: the frozen outputs that it reads of each view. They decide which targets are computed and read.
    - function: maps the outputs of each view, in the order of `views`, and the settings to the loss per sample (B,) and further
      metrics per sample, each (B,). It is pure, and samples do not see each other.
    - settings: the class of its settings. It has a field omega_win if the objective needs "winning", and omega_lose if it needs
      "losing". `PreferenceSettings` has both.
    """

    name: str
    settings: type[Settings]
    needs: frozenset[FrozenName]
    function: Callable[[tuple[ViewOutputs, ...], Settings], LossAndMetrics]
    views: tuple[View, ...] = (View(picture=0, text=0),)

    def __post_init__(self) -> None:
        """Raise ValueError for an objective that cannot be trained with."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in _TAKEN:
            raise ValueError(
                f"an objective is called {self.name!r}; a name is of small letters, digits and _, and none of {', '.join(_TAKEN)}"
            )
        if not self.needs or not self.views:
            raise ValueError(f"objective {self.name!r} has no needs or no views; name at least one of each")
        for output, omega in _OMEGAS.items():
            if output in self.needs and omega not in self.settings.model_fields:
                raise ValueError(
                    f"objective {self.name!r} needs the {output!r} output, which is made with {omega}, and "
                    f"{self.settings.__name__} has no such field; add it"
                )

    @property
    def supervised(self) -> bool:
        """Whether it learns from the noise alone, so that neither the expert nor the reference is called."""
        return self.needs == {"target"}

    @property
    def calls_expert(self) -> bool:
        """Whether it reads outputs of θ1."""
        return not _OMEGAS.keys().isdisjoint(self.needs)

    @property
    def pictures(self) -> int:
        """How many pictures a sample has: two for an objective that compares them."""
        return 1 + max(view.picture for view in self.views)

    def outputs(
        self,
        prediction: Tensor,
        target: Tensor | None,
        reference: Tensor | None,
        expert: ExpertDifferences | None,
        settings: Settings,
    ) -> ViewOutputs:
        """Return a view's outputs from a prediction and what target shards hold for it, all (B, ...), with the settings' ω."""
        if expert is None:
            return ViewOutputs(prediction, target, reference)
        told: Any = settings  # the objective's own class, with the fields that __post_init__ checks
        winning = expert.winning(told.omega_win) if "winning" in self.needs else None
        losing = expert.losing(told.omega_lose) if "losing" in self.needs else None
        return ViewOutputs(prediction, target, expert.reference, winning, losing)

    def __call__(self, views: tuple[ViewOutputs, ...], settings: Settings) -> LossAndMetrics:
        """Return the loss per sample (B,) and metrics per sample, each (B,) without gradient, the loss itself among them.

        Computed in float32 whatever the predictions' dtype. Raises ValueError if a needed output is missing or differs from the
        prediction in shape, or if the loss is not (B,): each of these would broadcast into a wrong number.
        """
        assert len(views) == len(self.views)
        for view in views:
            for name in self.needs:
                shape = view.frozen(name).shape
                if shape != view.prediction.shape:
                    raise ValueError(
                        f"objective {self.name!r} got a prediction of shape {tuple(view.prediction.shape)} and a "
                        f"{name!r} output of shape {tuple(shape)}; both must have the same shape"
                    )
        loss, metrics = self.function(tuple(replace(view, prediction=view.prediction.float()) for view in views), settings)
        batch, every = len(views[0].prediction), {"loss": loss, **metrics}
        for metric, values in every.items():
            if values.shape != (batch,):
                raise ValueError(
                    f"objective {self.name!r} gave a {metric!r} of shape {tuple(values.shape)} for a batch of {batch}; "
                    "it must give one number per sample"
                )
        return loss, {metric: values.detach() for metric, values in every.items()}


def mean_per_sample(values: Tensor) -> Tensor:
    """Return the mean over all dimensions but the first: (B, ...) to (B,)."""
    return values.flatten(1).mean(dim=1)
