"""Expert knowledge as a tree of attributes: loads, checks, compares and exports the YAML files."""

from cpo_ray.hierarchy.load import load_hierarchy
from cpo_ray.hierarchy.tree import Attribute, Hierarchy, HierarchyError, Node, Pole

__all__ = ["Attribute", "Hierarchy", "HierarchyError", "Node", "Pole", "load_hierarchy"]
