"""Show a hierarchy in the terminal, check it, compare two versions, or export one.

    python -m cpo_ray.hierarchy show FILE [ID]                          the tree, a branch, or one attribute
    python -m cpo_ray.hierarchy check FILE                              every problem with its line, or the size of the tree
    python -m cpo_ray.hierarchy diff OLD NEW [--annotations FOLDER]     what changed, and which annotated rows that touches
    python -m cpo_ray.hierarchy export json-schema FILE [--root ID]     the form of an annotator's answer
    python -m cpo_ray.hierarchy export skos FILE [--base IRI]           a concept scheme as JSON-LD
    python -m cpo_ray.hierarchy export svg FILE                         a picture of the tree

An export is printed, or written to the file that `--output` names. Exit codes: 0 done, 1 a file is wrong, 2 a wrong command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from cpo_ray.hierarchy import difference, load_hierarchy, show, touched
from cpo_ray.hierarchy.json_schema import answer_schema
from cpo_ray.hierarchy.skos import skos
from cpo_ray.hierarchy.svg import svg


def main() -> int:
    arguments = parser().parse_args()
    try:
        print("\n".join(arguments.lines(arguments)))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe. Without this, Python would print an error when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m cpo_ray.hierarchy", description="Show, check, compare or export a hierarchy.")
    actions = root.add_subparsers(required=True, metavar="show|check|diff|export")
    shown = actions.add_parser("show", help="print the tree, a branch, or one attribute")
    shown.set_defaults(lines=_show)
    _add_file(shown, "file")
    shown.add_argument("id", nargs="?", help="id of a node or an attribute")
    checked = actions.add_parser("check", help="list every problem, or print the size of the tree")
    checked.set_defaults(lines=_check)
    _add_file(checked, "file")
    compared = actions.add_parser("diff", help="list the changes, and the annotated rows they affect")
    compared.set_defaults(lines=_diff)
    _add_file(compared, "old")
    _add_file(compared, "new")
    compared.add_argument("--annotations", type=Path, metavar="FOLDER", help="annotated shards made with the old version")
    formats = actions.add_parser("export", help="write another format").add_subparsers(required=True, dest="format")
    for name, about in (
        ("json-schema", "the form of an annotator's answer"),
        ("skos", "a SKOS concept scheme in JSON-LD"),
        ("svg", "a picture of the tree"),
    ):
        exported = formats.add_parser(name, help=about)
        exported.set_defaults(lines=_export, root=None, base=None)
        _add_file(exported, "file")
        exported.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of the terminal")
    formats.choices["json-schema"].add_argument("--root", metavar="ID", help="export the answer for this root only")
    formats.choices["skos"].add_argument("--base", metavar="IRI", help="IRI of the scheme; entries are BASE#ID")
    return root


def _add_file(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, type=Path, help="YAML file of a hierarchy")


def _show(arguments: argparse.Namespace) -> Iterable[str]:
    hierarchy = load_hierarchy(arguments.file)
    return show.drawing(hierarchy) if arguments.id is None else show.part(hierarchy, arguments.id)


def _check(arguments: argparse.Namespace) -> Iterable[str]:
    return [f"{arguments.file}: no problems; {show.summary(load_hierarchy(arguments.file))}"]


def _diff(arguments: argparse.Namespace) -> Iterable[str]:
    old, new = load_hierarchy(arguments.old), load_hierarchy(arguments.new)
    found = difference.difference(old, new)
    yield from difference.told(old, new, found)
    if arguments.annotations is not None:
        counts = touched.touched(arguments.annotations, old, new, found)
        yield from touched.told(arguments.annotations, old, counts, found)


def _export(arguments: argparse.Namespace) -> Iterable[str]:
    hierarchy = load_hierarchy(arguments.file)
    if arguments.format == "svg":
        text = svg(hierarchy)
    else:
        json_schema = arguments.format == "json-schema"
        document = answer_schema(hierarchy, arguments.root) if json_schema else skos(hierarchy, arguments.base)
        text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if arguments.output is None:
        return [text.removesuffix("\n")]
    arguments.output.write_text(text, encoding="utf-8")
    return [f"wrote {arguments.output}"]


if __name__ == "__main__":
    sys.exit(main())
