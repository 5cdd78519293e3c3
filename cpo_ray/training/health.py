"""When a training has gone wrong: a number that is not finite, or a gradient far above its usual size."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW = 100
#: The first gradients are unlike the later ones, so a spike is one only after as many steps.
SETTLED = 20


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
