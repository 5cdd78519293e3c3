"""The section that describes a sweep, and what its axes do to the rest of the configuration."""

from cpo_ray.config.sweep.settings import Sweep

__all__ = ["Sweep"]
