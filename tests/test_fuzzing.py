"""Damaged and hostile input of every kind that is read: each is either taken, or refused with an error of ours.

The suite tries a few changes of each kind. FUZZ_SECONDS=600 tries changes of each kind for as long; what fails names its seed.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save
from support.mixed_folder import encoded, rotated
from support.mutation import Mutator

from cpo_ray.annotation.asking import answers
from cpo_ray.annotation.asking.questions import Questions
from cpo_ray.annotation.back_ends import endpoint
from cpo_ray.annotation.back_ends.endpoint_settings import EndpointSettings
from cpo_ray.annotation.back_ends.protocol import reason_in, seconds_in
from cpo_ray.config import load
from cpo_ray.core.plan import Item
from cpo_ray.core.prompts import Labels
from cpo_ray.data.importer import import_folder
from cpo_ray.data.picture import decode
from cpo_ray.data.shards import AnnotatedDataset, write_shards
from cpo_ray.data.validate import Origin, annotated_row
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models.adapters.reading import adapter_file
from cpo_ray.models.bases.weights import read_header, read_metadata, read_object
from cpo_ray.review.judgements import read_judgements
from cpo_ray.targets.store import TargetStore

ROOT = Path(__file__).parents[1]
TOY, TREE = ROOT / "jobs" / "configs" / "toy.toml", ROOT / "hierarchy" / "painting_toy.yaml"
CASES = 25
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))

Tried = Callable[[Mutator, Path], object]
ENTRY = {"file_name": "a.png", "prompt": "a house", "positive": ["edge.clarity"], "negative": ["color.palette"], "split": "test"}
ENVELOPE = {
    "choices": [{"message": {"content": "{}", "refusal": None}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    "error": {"message": "no", "code": "429", "type": "insufficient_quota"},
}
ANSWER = {
    "description": "x",
    "positive_ids": ["edge.clarity"],
    "negative_ids": [],
    "sub_dimensions": [],
    "prompt": "x",
    "named": [],
}


def toml(mutate: Mutator, place: Path) -> None:
    (place / "my.toml").write_bytes(mutate.damaged(TOY.read_bytes()))
    load(place / "my.toml")


def yaml(mutate: Mutator, place: Path) -> None:
    (place / "tree.yaml").write_bytes(mutate.damaged(TREE.read_bytes()))
    load_hierarchy(place / "tree.yaml")


def imported(name: str, data: bytes, place: Path) -> None:
    """Import a folder of one good picture, which is kept whatever lies beside it, and a changed file."""
    folder = place / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(encoded())
    (folder / "good.txt").write_text("a house")
    (folder / "a.png").write_bytes(encoded())
    (folder / name).write_bytes(data)
    import_folder(folder, place / "shards", load_hierarchy(TREE))
    assert AnnotatedDataset.open(place / "shards").ids


def metadata(name: str, data: Callable[[Mutator], bytes]) -> Tried:
    return lambda mutate, place: imported(name, data(mutate), place)


def table(mutate: Mutator, place: Path) -> None:
    stream = io.BytesIO()
    rows = {"image": [encoded()] * 3, "prompt": ["a house"] * 3, "id": [1, 2, 3], "positive": [["edge.clarity"]] * 3}
    pq.write_table(pa.table(rows | {"negative": [["color.palette"]] * 3}), stream)
    imported("train.parquet", mutate.damaged(stream.getvalue()), place)


def tar(mutate: Mutator, place: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("train/0.png", encoded()), ("train/0.txt", b"a house"), ("é" * 120 + ".json", b'{"prompt": "x"}')):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    imported("part.tar", mutate.damaged(stream.getvalue()), place)


def picture(data: bytes) -> Tried:
    return lambda mutate, place: decode(mutate.damaged(data))


def shard(mutate: Mutator, place: Path) -> None:
    tree = load_hierarchy(TREE)
    row = annotated_row("a", encoded(), Labels("a house", ("edge.clarity",), ()), Origin("by hand"), tree)
    write_shards([row], place / "data")
    (file,) = (place / "data").glob("*.parquet")
    file.write_bytes(mutate.damaged(file.read_bytes()))
    AnnotatedDataset.open(place / "data").check_hierarchy(tree)


def header(mutate: Mutator, place: Path) -> None:
    """A file of weights whose header is changed as JSON, with a length that fits, and one with any bytes changed."""
    whole = save({"unet.a.lora_A.weight": torch.zeros(2, 3), "unet.a.lora_B.weight": torch.zeros(3, 2)}, {"format": "pt"})
    length = int.from_bytes(whole[:8], "little")
    changed = mutate.text(json.loads(whole[8 : 8 + length]))
    file = place / "a.safetensors"
    for data in (len(changed).to_bytes(8, "little") + changed + whole[8 + length :], mutate.damaged(whole)):
        file.write_bytes(data)
        for reader in (read_header, read_metadata, adapter_file):
            ours(lambda reader=reader: reader(file))  # type: ignore[misc]


def target(mutate: Mutator, place: Path) -> None:
    store, items = TargetStore(place, "t"), (Item("a", 0),)
    path = store.write(items, {"x": torch.zeros(2, 3)}, {"kind": "x"})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    changed = json.loads(whole[8 : 8 + length])
    (key,) = changed["__metadata__"]
    changed["__metadata__"][key] = mutate.text(json.loads(changed["__metadata__"][key])).decode("utf-8", "replace")
    text = json.dumps(changed).encode()
    for data in (len(text).to_bytes(8, "little") + text + whole[8 + length :], mutate.damaged(whole)):
        path.write_bytes(data)
        ours(lambda: store.read(items, verify=True))
        store.problem(path)


def small_json(mutate: Mutator, place: Path) -> None:
    (place / "a.json").write_bytes(mutate.text({"weight_map": {"a": "b"}}))
    read_object(place / "a.json")


def judgements(mutate: Mutator, place: Path) -> None:
    tree = load_hierarchy(TREE)
    write_shards([annotated_row("a", encoded(), Labels("x", ("edge.clarity",), ()), Origin("me"), tree)], place / "data")
    line = {"id": "a", "label": "+edge.clarity", "verdict": "confirmed", "hierarchy": tree.content_hash, "at": "2026-01-01"}
    (place / "ann.jsonl").write_bytes(mutate.text(line) + b"\n")
    read_judgements(place / "ann.jsonl", AnnotatedDataset.open(place / "data"), tree)


def answered(mutate: Mutator, place: Path) -> None:
    text = mutate.text(ANSWER).decode("utf-8", "replace")
    question = Questions(load_hierarchy(TREE)).about("a house")[0]
    for reading in (answers.content_prompt, answers.missing):
        ours(lambda reading=reading: reading(text))  # type: ignore[misc]
    answers.judgement(text, question, load_hierarchy(TREE))


def service(mutate: Mutator, place: Path) -> None:
    """What an endpoint sends: its bytes, its header, its status."""
    body = mutate.text(ENVELOPE)
    reason_in(body)
    seconds_in(mutate.damaged(b"Thu, 01 Jan 1970 00:00:00 GMT").decode("latin-1"))

    async def read() -> None:
        opened = endpoint.EndpointBackEnd(EndpointSettings(kind="endpoint", model="m", url="http://127.0.0.1:9/v1"), "cpu")
        try:
            for status in (400, 402, 429, 500):
                ours(lambda status=status: opened._check_status(status, body, None, ""))  # type: ignore[misc]
            envelope: Any = json.loads(body)
            if isinstance(envelope, dict):
                opened._reply(envelope, 1)
        finally:
            await opened.close()

    with suppress(ValueError, RecursionError):  # _post tells so before
        asyncio.run(read())


KINDS: dict[str, Tried] = {
    "TOML": toml,
    "YAML": yaml,
    "metadata.jsonl": metadata("metadata.jsonl", lambda mutate: mutate.text(ENTRY) + b"\n" + json.dumps(ENTRY).encode()),
    "metadata.json": metadata("metadata.json", lambda mutate: mutate.text([ENTRY, {"a.png": ENTRY}])),
    "metadata.csv": metadata(
        "metadata.csv", lambda mutate: mutate.damaged(b'file_name,text,positive\na.png,"a house",edge.clarity\n')
    ),
    "a caption": metadata("a.json", lambda mutate: mutate.text(ENTRY)),
    "Parquet": table,
    "tar": tar,
    "PNG": picture(encoded()),
    "JPEG": picture(rotated()),
    "TIFF": picture(encoded("tiff")),
    "WebP": picture(encoded("webp")),
    "GIF": picture(encoded("gif")),
    "annotated shards": shard,
    "safetensors": header,
    "target shards": target,
    "JSON": small_json,
    "judgements": judgements,
    "answers": answered,
    "endpoint": service,
}


def ours(tried: Callable[[], object]) -> None:
    """Pass over errors that are of this package, which the command line prints as sentences; an internal one may say nothing."""
    try:
        tried()
    except Exception as error:
        internal = type(error).__name__.startswith("_")
        if not type(error).__module__.startswith("cpo_ray") or not (str(error).strip() or internal):
            raise


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900 + SECONDS)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_taken_or_refused(kind: str, tmp_path: Path) -> None:
    ended = time.monotonic() + SECONDS
    seed = 0
    while seed < CASES or time.monotonic() < ended:
        (place := tmp_path / str(seed)).mkdir()
        try:
            ours(lambda place=place, seed=seed: KINDS[kind](Mutator(seed), place))  # type: ignore[misc]
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
        seed += 1
