"""Random numbers as a function of their purpose: no state, so nobody's order of calls changes anybody's numbers."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def digest(*parts: str | int | float, size: int) -> bytes:
    """Hash a tuple. JSON keeps ("a", "bc") apart from ("ab", "c"), and 1 apart from "1"."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=size).digest()


def counter_generator(seed: int, sample_id: str, draw: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of one draw of one sample for one purpose ("timestep", "noise", ...).

    Each call starts a fresh counter-based stream (Philox) keyed by its arguments. The numbers therefore do not depend on the
    caller, the order of calls, or their number.
    """
    key = int.from_bytes(digest(seed, sample_id, draw, purpose, size=16), "little")
    return np.random.Generator(np.random.Philox(key=key))


def hash_fraction(text: str) -> float:
    """Map a text to a fixed number; the numbers of many texts are uniform in [0, 1)."""
    return (int.from_bytes(digest(text, size=8), "little") >> 11) / 2**53
