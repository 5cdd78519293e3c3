"""A package outside `cpo_ray` that brings one of everything that can be added, each by its import path."""
