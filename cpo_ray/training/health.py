"""When a training has gone wrong: numbers that are not finite, gradients far above their usual size, ranks that differ, and what
only deserves a warning."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import median, quantiles

WINDOW = 100
#: The first gradients are unlike the later ones, so a spike is one only after as many steps.
SETTLED = 20
#: Ranks are compared every so many steps, besides at every checkpoint.
COMPARED_EVERY = 25
#: A winner error is judged after so many steps, and again whenever there are a quarter more.
WINNER_JUDGED_FROM = 64


class TrainingHealthError(ValueError):
    """Training was stopped by its own numbers; starting again from the checkpoint without a change would end the same."""


class HealthWatch:
    """Remembers the last gradient norms. `norms` are those before a resume, so that it changes no verdict.

    A gradient that `gradient_clip` lets pass is no spike, whatever the others were: where a preference loss saturates, most
    gradients fade to nothing, and a batch that is not there yet stands out from them without doing harm.
    """

    def __init__(self, spike_factor: float, gradient_clip: float, norms: Iterable[float] = ()) -> None:
        self._spike_factor, self._gradient_clip = spike_factor, gradient_clip
        self.norms = deque(norms, maxlen=WINDOW)

    def problem(self, step: int, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with this step, as the first half of a sentence, or None."""
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
    """What is wrong where the ranks' weights, of these checksums by rank, are not the same: half a sentence, or None."""
    (most, count), *others = Counter(checksums).most_common()
    if not others:
        return None
    # Where two have the most votes, or all differ, nobody can say which is right.
    tied = count == others[0][1]
    ranks = [rank for rank, checksum in enumerate(checksums) if tied or checksum != most]
    named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    whom = "each other" if tied else "those of the other ranks"
    return f"after step {step} the weights of {named} differ from {whom}, by a fault of a machine or of the network between them"


def winner_warning(errors: Sequence[float], beta: float, omega_win: float, omega_lose: float) -> str | None:
    """Whether the winner error grew for long, given that of each step from the first; the first verdict that is one stays.

    After n steps the medians of the quarters of these n are compared: the last is at least twice the second and 1.25 times the
    third, and beyond their scatter. It is all in ratios, since the error is 0 at the start, rises a little in many trainings and
    levels off: on the embedded domain stabilised CPO comes to 2.3 and 1.1 after 64 steps and soon to 1 and 1, plain CPO, which
    diverges, to 4.3 and 1.7.
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
                f"from z_w too; look at its pictures, and try a larger beta (now {beta:g}), a smaller omega_win and omega_lose "
                f"(now {omega_win:g} and {omega_lose:g}) or a smaller learning_rate"
            )
        steps += steps // 4
    return None
