"""Export a hierarchy as a SKOS concept scheme in JSON-LD, for thesaurus editors and triple stores.

Nodes, attributes and poles are concepts, each narrower than the one above it. An attribute's cue is its `skos:note`, and its
condition is its `skos:scopeNote`. A pole's phrase is its `skos:altLabel`. Poles that exclude each other (an exclusive group, or a
`forbids`) form a `skos:Collection`. A pole's requirements are `dcterms:requires`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cpo_ray.hierarchy.tree import Attribute, Hierarchy, Node

Entry = dict[str, Any]

EXCLUDE = "At most one of these holds in one sample."


def skos(hierarchy: Hierarchy, base: str | None = None, language: str = "en") -> Entry:
    """Return the JSON-LD document. `base` is the IRI of the scheme, `base#id` of an entry, and `base#id/positive` of a pole."""
    base = base or f"urn:hierarchy:{quote(hierarchy.name, safe='')}"
    scheme: Entry = {
        "@id": base,
        "@type": "skos:ConceptScheme",
        "title": hierarchy.name,
        "description": hierarchy.description,
        "version": hierarchy.version,
        "identifier": hierarchy.content_hash,
        "hasTopConcept": [_iri(base, root.id) for root in hierarchy.roots],
    }
    concepts = (entry for root in hierarchy.roots for entry in _node(base, root, None))
    return {"@context": _context(language), "@graph": [scheme, *concepts, *_collections(base, hierarchy)]}


def _context(language: str) -> Entry:
    text = {"@language": language}
    texts = text | {"@container": "@set"}
    links = {"@type": "@id", "@container": "@set"}
    return {
        "skos": "http://www.w3.org/2004/02/skos/core#",
        "dcterms": "http://purl.org/dc/terms/",
        "owl": "http://www.w3.org/2002/07/owl#",
        "title": {"@id": "dcterms:title"} | text,
        "description": {"@id": "dcterms:description"} | text,
        "version": "owl:versionInfo",
        "identifier": "dcterms:identifier",
        "notation": "skos:notation",
        "prefLabel": {"@id": "skos:prefLabel"} | text,
        "altLabel": {"@id": "skos:altLabel"} | texts,
        "definition": {"@id": "skos:definition"} | text,
        "note": {"@id": "skos:note"} | text,
        "scopeNote": {"@id": "skos:scopeNote"} | text,
        "inScheme": {"@id": "skos:inScheme", "@type": "@id"},
        "broader": {"@id": "skos:broader", "@type": "@id"},
        "topConceptOf": {"@id": "skos:topConceptOf", "@type": "@id"},
        "narrower": {"@id": "skos:narrower"} | links,
        "hasTopConcept": {"@id": "skos:hasTopConcept"} | links,
        "member": {"@id": "skos:member"} | links,
        "requires": {"@id": "dcterms:requires"} | links,
    }


def _node(base: str, node: Node, above: str | None) -> Iterator[Entry]:
    entry = _concept(base, node.id, node.label, node.alternative_labels)
    entry |= {"topConceptOf": base} if above is None else {"broader": above}
    yield entry | {"narrower": [_iri(base, below.id) for below in node.children or node.attributes]}
    for child in node.children:
        yield from _node(base, child, entry["@id"])
    for attribute in node.attributes:
        yield from _attribute(base, attribute, entry["@id"])


def _attribute(base: str, attribute: Attribute, above: str) -> Iterator[Entry]:
    entry = _concept(base, attribute.id, attribute.label, attribute.alternative_labels)
    entry |= {"definition": attribute.definition, "note": attribute.cue, "broader": above}
    if attribute.applies_note:
        entry["scopeNote"] = attribute.applies_note
    yield entry | {"narrower": [_iri(base, signed_id) for signed_id in attribute.poles]}
    for signed_id, pole in attribute.poles.items():
        side = _concept(base, signed_id, pole.label, (pole.phrase,)) | {"broader": entry["@id"]}
        if pole.requires:
            side["requires"] = [_iri(base, needed) for needed in pole.requires]
        yield side


def _concept(base: str, entry_id: str, label: str, alternatives: tuple[str, ...]) -> Entry:
    entry: Entry = {"@id": _iri(base, entry_id), "@type": "skos:Concept", "notation": entry_id, "prefLabel": label}
    # SKOS does not let one text be both the preferred and an alternative label.
    others = [alternative for alternative in alternatives if alternative != label]
    return entry | ({"altLabel": others} if others else {}) | {"inScheme": base}


def _collections(base: str, hierarchy: Hierarchy) -> Iterator[Entry]:
    forbidden = {
        frozenset({signed_id, other})
        for attribute in hierarchy.attributes.values()
        for signed_id, pole in attribute.poles.items()
        for other in pole.forbids
    }
    groups = [*hierarchy.exclusive, *sorted(forbidden.difference(hierarchy.exclusive), key=sorted)]
    for number, group in enumerate(groups):
        members = [_iri(base, signed_id) for signed_id in sorted(group)]
        yield {"@id": f"{base}#:exclusive/{number}", "@type": "skos:Collection", "note": EXCLUDE, "member": members}


def _iri(base: str, entry_id: str) -> str:
    pole = {"+": "/positive", "-": "/negative"}.get(entry_id[0], "")
    return f"{base}#{quote(entry_id.lstrip('+-') if pole else entry_id, safe='')}{pole}"
