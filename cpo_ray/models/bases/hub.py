"""What the hub says about a base that is not on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath

from cpo_ray.config import ConfigError, Model
from cpo_ray.models.bases.source import local_base
from cpo_ray.models.bases.weights import variant_among

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: The hub answers within this time, or is not waited for.
_SECONDS = 10.0


def variant(model: Model, part: str, stem: str) -> str | None:
    """Return the variant in which a part's weights exist, here or on the hub; None for plain ones, and where nobody knows."""
    folder = local_base(model)
    names = [file.name for file in (folder / part).glob("*.safetensors*")] if folder else []
    return variant_among(names or _hub_names(model.base, model.revision, part), stem)


@lru_cache(maxsize=32)
def _hub_names(base: str, revision: str | None, part: str) -> tuple[str, ...]:
    """Return the names of the files in a folder of a hub id; none where the hub does not answer, which the loader then says."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(base, revision=revision)
    except Exception:  # of any kind: no network, a proxy, no access
        return ()
    return tuple(PurePosixPath(file).name for file in files if str(PurePosixPath(file).parent) == part)


def unpinned(model: Model, commit: str | None = None) -> str | None:
    """Return a sentence if the revision of a hub id does not name one commit, or None. `commit` is the one that it names now."""
    if model.revision and _COMMIT.fullmatch(model.revision):
        return None
    now = commit or "the commit's 40 digits"
    found = "is not set" if model.revision is None else f"is {model.revision!r}, a branch or tag that can move"
    return f"model.revision {found}, so nodes may load different weights; pin it: model.revision={now}"


def look_up(model: Model, parts: tuple[str, ...]) -> Iterator[str]:
    """Ask the hub about a base, and yield what to know about it. `parts` are the folders with weights that will be loaded.

    Raises ConfigError where it cannot be downloaded: no such base or revision, no access, offline, parts missing or pickles only.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    base = model.base
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{base} is not on this machine, and HF_HUB_OFFLINE is set; download it first: hf download {base}")
    try:
        hub = HfApi()
        found = hub.model_info(base, revision=model.revision, timeout=_SECONDS)
        if found.gated:
            hub.auth_check(base)
    except GatedRepoError:
        raise ConfigError(f"{base} is gated; accept its terms on the hub, and set HF_TOKEN on every node") from None
    except RevisionNotFoundError:
        raise ConfigError(f"{base} has no revision {model.revision!r} on the hub; give the commit's hash") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"there is no folder {base}, and the hub has no such model, or a private one: set HF_TOKEN") from None
    except Exception as error:  # of any kind: no network, a proxy, a broken answer
        yield f"{base} is not on this machine and will be downloaded by every node; the hub does not answer here: {error}"
        if note := unpinned(model):
            yield note
        return
    names = {part: [n.rpartition("/")[2] for n in _names(found) if n.rpartition("/")[0] == part] for part in parts}
    if lacking := [f"{part}/" for part in parts if not names[part]]:
        raise ConfigError(f"{base} has no {', '.join(lacking)} on the hub; it must be a pipeline saved by diffusers")
    if pickled := [part for part in parts if not any(".safetensors" in name for name in names[part])]:
        raise ConfigError(f"{base} has weights in {', '.join(pickled)} as pickles only, which can run code and are never opened")
    yield f"{base} is not on this machine and will be downloaded from the hub by every node"
    if note := unpinned(model, found.sha):
        yield note


def _names(found: object) -> list[str]:
    return [file.rfilename for file in getattr(found, "siblings", None) or ()]
