"""Detect a training that has gone wrong: numbers that are not finite, gradient spikes, unequal ranks, a growing winner error."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import median, quantiles

from cpo_ray.config.objective import ObjectiveSettings

WINDOW = 100
#: Spikes count only after this many steps, since the first gradients differ from the later ones.
SETTLED = 20
#: Ranks are compared at every checkpoint, and every this many steps.
COMPARED_EVERY = 25
#: Settings of an objective, and how each of them makes it gentler.
GENTLER = {"beta": "larger", "omega_win": "smaller", "omega_lose": "smaller"}
#: The winner error is judged after this many steps, and again after every quarter more.
WINNER_JUDGED_FROM = 64


class TrainingHealthError(ValueError):
    """The training's own numbers stopped it. Resuming from the checkpoint without a change would end the same way."""


class HealthWatch:
    """Remembers the last gradient norms. `norms` are the ones before a resume, so that resuming changes no verdict.

    A gradient that `gradient_clip` leaves unchanged is never a spike. When a preference loss saturates, most gradients fade to
    nothing, and a batch that is not saturated yet stands out without doing harm.
    """

    def __init__(self, spike_factor: float, gradient_clip: float, norms: Iterable[float] = ()) -> None:
        self._spike_factor, self._gradient_clip = spike_factor, gradient_clip
        self.norms = deque(norms, maxlen=WINDOW)

    def problem(self, step: int, loss: float, gradient_norm: float) -> str | None:
        """Return what is wrong with this step as the first half of a sentence, or None."""
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                usual = f"median of the gradient norm so far: {median(self.norms):.3g}" if self.norms else "no step came before"
                return f"the {name} of step {step} is {value} ({usual})"
        if len(self.norms) >= SETTLED and gradient_norm > max(self._spike_factor * median(self.norms), self._gradient_clip):
            return (
                f"the gradient norm of step {step} is {gradient_norm:.3g}, more than {self._spike_factor:g} times "
                f"its running median of {median(self.norms):.3g}"
            )
        self.norms.append(gradient_norm)
        return None


def difference(step: int, checksums: Sequence[int]) -> str | None:
    """Return what is wrong if the ranks' weights differ, given their checksums by rank, as half a sentence; otherwise None."""
    (most, count), *others = Counter(checksums).most_common()
    if not others:
        return None
    # If two values have equally many votes, or all differ, it is unknown which is right.
    tied = count == others[0][1]
    ranks = [rank for rank, checksum in enumerate(checksums) if tied or checksum != most]
    named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    whom = "each other" if tied else "those of the other ranks"
    return f"after step {step} the weights of {named} differ from {whom}, by a fault of a machine or of the network between them"


def winner_warning(errors: Sequence[float], settings: ObjectiveSettings) -> str | None:
    """Return whether the winner error has grown for long, given the error of each step from the first. A warning once given
    stays. It advises on those of the objective's settings that keep the model closer to the reference.

    After n steps the medians of the four quarters of these n are compared. The last must be at least twice the second and 1.25
    times the third, and exceed their scatter. The test uses ratios because the error starts at 0, and in many trainings it rises
    a little and levels off. On the embedded domain the ratios of stabilised CPO are 2.3 and 1.1 after 64 steps and soon 1 and 1.
    Those of plain CPO, which diverges, are 4.3 and 1.7.
    """
    steps = WINNER_JUDGED_FROM
    while steps <= len(errors):
        quarter = steps // 4
        (_, second, high), (_, third, _), (low, last, _) = (
            quantiles(errors[part * quarter : (part + 1) * quarter], n=4) for part in (1, 2, 3)
        )
        if last > max(2 * second, 1.25 * third, 0) and low > high:
            return (
                f"the winner error has grown for {steps} steps, lately to {last:.3g} above the reference's: the model moves away "
                f"from z_w too; look at its pictures, and try {_gentler(settings)}"
            )
        steps += steps // 4
    return None


def _gentler(settings: ObjectiveSettings) -> str:
    """Return what to try, such as "a larger beta (now 5000) or a smaller learning_rate"."""
    now = settings.model_dump()
    found = [f"a {way} {name} (now {now[name]:g})" for name, way in GENTLER.items() if name in now]
    return " or ".join(filter(None, (", ".join(found), "a smaller learning_rate")))
