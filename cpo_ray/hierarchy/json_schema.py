"""Export the JSON Schema of an annotator's answer: the attributes of the tree that hold, by pole.

    {"positive_ids": ["edge.clarity"], "negative_ids": ["edge.focus"]}                  the answer for one root
    {"edge": {"positive_ids": …, "negative_ids": …}, "light": …}                        the answer for the whole tree

The schema uses only what constrained decoders support: closed objects, enumerations and list lengths. It cannot say which labels
exclude or require each other, nor that no id repeats; `Hierarchy.problems` checks that.
"""

from __future__ import annotations

from typing import Any

from cpo_ray.hierarchy.tree import Hierarchy, Node

Schema = dict[str, Any]


def answer_schema(hierarchy: Hierarchy, root_id: str | None = None) -> Schema:
    """Return the schema of the answer for one root, or for all roots.

    `$comment` holds the content hash, which ties an answer to this tree. Raises HierarchyError for an unknown root.
    """
    if root_id is None:
        answer = _closed({root.id: _root(root) for root in hierarchy.roots})
        title = f"{hierarchy.name} {hierarchy.version}"
    else:
        answer = _root(hierarchy.root(root_id))
        title = f"{hierarchy.name} {hierarchy.version}: {answer['description']}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": hierarchy.content_hash, "title": title}
    return head | answer


def _root(root: Node) -> Schema:
    attributes = list(root.walk())
    positive = _some_of([attribute.id for attribute in attributes])
    negative = _some_of([attribute.id for attribute in attributes if attribute.negative is not None])
    return {"description": root.label} | _closed({"positive_ids": positive, "negative_ids": negative})


def _closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _some_of(ids: list[str]) -> Schema:
    # `maxItems` stops a decoder that repeats itself. An enumeration must not be empty.
    items: Schema = {"type": "string", "enum": ids} if ids else {"type": "string"}
    return {"type": "array", "items": items, "maxItems": len(ids)}
