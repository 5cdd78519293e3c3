"""Expert knowledge as trees of attributes: the YAML files, and the code that reads and checks them."""

from cpo_ray.hierarchy.load import load_hierarchy
from cpo_ray.hierarchy.tree import Attribute, Hierarchy, HierarchyError, Node, Pole

__all__ = ["Attribute", "Hierarchy", "HierarchyError", "Node", "Pole", "load_hierarchy"]
