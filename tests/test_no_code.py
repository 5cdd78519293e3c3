"""Nothing that is read can run code: no loader unpickles, and code that lies beside weights is never imported.

One test walks every call of a loader in the package. The others give every real loader a pickle that leaves a trace, and a base
and an annotator that bring code of their own.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cpo_ray.config import Model, load
from cpo_ray.core.plan import Item
from cpo_ray.data.importer import import_folder
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.evaluation.scorers.base import NotScored
from cpo_ray.evaluation.scorers.clip import ClipScore, ClipSettings
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.models.bases.single_file import unpack
from cpo_ray.models.on_diffusers import DiffusersFamily
from cpo_ray.models.vision_language import VisionLanguageModel
from cpo_ray.targets.store import TargetStore

ROOT = Path(__file__).parents[1]
BASE = ROOT / "cpo_ray" / "domains" / "toy" / "assets" / "base"
TREE = ROOT / "hierarchy" / "painting_toy.yaml"
CPU = torch.device("cpu")
#: Loaders that unpickle unless they are told not to.
LOADERS = ("from_pretrained", "from_single_file")
#: What has no weights: configurations, tokenizers, processors.
WITHOUT_WEIGHTS = ("config_class", "AutoProcessor", "AutoTokenizer", "DDPMScheduler")
FORBIDDEN = {
    *("torch.load", "pickle.load", "pickle.loads", "joblib.load", "np.load", "numpy.load", "eval", "exec", "os.system"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "pd.read_pickle"),
}


def test_no_call_of_a_loader_unpickles_or_runs_code() -> None:
    found = []
    for file in sorted(path for room in ("cpo_ray", "jobs", "tune") for path in (ROOT / room).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            said, where = ast.unparse(call), f"{file.relative_to(ROOT)}:{call.lineno}"
            name = ast.unparse(call.func)
            assert name not in FORBIDDEN, where
            assert "trust_remote_code=True" not in said and "shell=True" not in said, where
            assert not name.endswith(("lora_state_dict", "load_lora_weights")), f"{where}: adapters have one reader"
            assert not name.endswith((".extractall", ".load_model")), where
            # What rank 0 of our own driver has pickled for its workers travels inside Ray.
            assert not name.endswith("cloudpickle.loads") or file.name == "worker.py", where
            if name.endswith(LOADERS) and not any(kind in said for kind in WITHOUT_WEIGHTS):
                found.append(where)
                assert "use_safetensors=True" in said, where
    assert len(found) >= 5, "the test finds the loaders"


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trap(tmp_path: Path) -> bytes:
    """A file of weights as torch saves it, with the trap inside."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "trap": Trap(tmp_path / "sprung")}, stream)
    return stream.getvalue()


def test_the_trap_springs_where_it_is_unpickled(trap: bytes, tmp_path: Path) -> None:
    torch.load(io.BytesIO(trap), weights_only=False)
    assert (tmp_path / "sprung").is_dir()


def _base(folder: Path, part: str, data: bytes, name: str) -> Model:
    """The embedded base, with something else in the place of a part's weights."""
    base = shutil.copytree(BASE, folder / "base", symlinks=True)
    (weights,) = (base / part).glob("*.safetensors")
    weights.unlink()
    (base / part / name.replace("*", weights.stem)).write_bytes(data)
    return Model(family="sdxl", base=str(base), resolution=64)


def _vae(model: Model, folder: Path | None = None) -> object:
    found = family(model)
    assert isinstance(found, DiffusersFamily)
    return found.load_vae(model, CPU, folder)


def _checked(model: Model) -> object:
    return family(model).check_base(model, Path(model.base))


#: What loads a part of a base.
PARTS: dict[str, Callable[[Model], object]] = {
    "unet": lambda model: family(model).load_denoiser(model),
    "vae": _vae,
    "text_encoder": lambda model: family(model).load_encoders(model, CPU),
    "text_encoder_2": lambda model: family(model).load_encoders(model, CPU),
}


@pytest.mark.parametrize("name", ["*.safetensors", "*.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("part", PARTS)
def test_bases_are_not_unpickled(trap: bytes, tmp_path: Path, part: str, name: str) -> None:
    model = _base(tmp_path, part, trap, name)
    for loader in (PARTS[part], _checked):
        with pytest.raises(Exception, match=r"pickle|safetensors|HeaderTooLarge|header"):
            loader(model)
    assert not (tmp_path / "sprung").exists()


def test_a_base_that_brings_code_does_not_run_it(tmp_path: Path) -> None:
    """Code beside the weights, named in every place from which libraries would import it."""
    base = shutil.copytree(BASE, tmp_path / "base")
    code = f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\nclass Own: pass\n"
    for place in ("own.py", "unet/own.py", "text_encoder/own.py", "tokenizer/own.py", "vae/own.py", "pipeline.py"):
        (base / place).write_text(code)
    index = json.loads((base / "model_index.json").read_text())
    changes = {"unet": ["own", "Own"], "vae": ["own", "Own"], "tokenizer": ["own", "Own"], "_class_name": ["own", "Own"]}
    for part in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"):
        held = json.loads((base / part).read_text())
        held["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "own.Own")
        (base / part).write_text(json.dumps(held))
    model = Model(family="sdxl", base=str(base), resolution=64)
    for change in ({}, *({name: value} for name, value in changes.items())):
        (base / "model_index.json").write_text(json.dumps(index | change))
        for loader in (*PARTS.values(), _checked):
            try:
                loader(model)
            except Exception as error:  # a refusal is as good as reading the weights alone
                assert not isinstance(error, FileExistsError)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.safetensors", "pytorch_lora_weights.bin"])
def test_adapters_scorers_and_single_files_are_not_unpickled(trap: bytes, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (file := folder / name).write_bytes(trap)
    model = Model(family="sdxl", base=str(BASE), resolution=64)
    for path in (folder, file):
        with pytest.raises(ValueError, match="pickle"):
            family(model).load_denoiser(model, path)
        with pytest.raises(NotScored, match=r"pickle|cannot be read as safetensors"):
            ClipScore(ClipSettings(name="clip", weights=str(path))).open_reader()
    with pytest.raises(ValueError, match="pickle"):
        unpack(load(ROOT / "jobs" / "configs" / "toy.toml", [f"model.base={file}"]), tmp_path / "unpacked")
    with pytest.raises(Exception, match=r"pickle|safetensors"):
        _vae(model, folder)
    assert not (tmp_path / "sprung").exists()


def test_annotators_are_neither_unpickled_nor_run(trap: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "annotator"
    folder.mkdir()
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\nclass Own: pass\n")
    kinds = ("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoModel", "AutoModelForImageTextToText", "AutoImageProcessor")
    held = {"model_type": "own", "auto_map": dict.fromkeys(kinds, "own.Own"), "architectures": ["Own"]}
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(held))
    for name in ("pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(trap)
    with pytest.raises(Exception, match="cannot be loaded as a vision-language model"):
        VisionLanguageModel(str(folder), None, "float32", "cpu")
    assert not (tmp_path / "sprung").exists()


def test_data_sets_target_shards_and_trees_are_not_unpickled(trap: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.pkl", "c.npy", "d.parquet", "metadata.parquet", "metadata.json", "e.txt", "annotated-00000.parquet"):
        (folder / name).write_bytes(trap if name != "b.pkl" else pickle.dumps(Trap(tmp_path / "sprung")))
    with tarfile.open(folder / "f.tar", "w") as tar:
        for name in ("0.png", "0.pkl", "0.pickle", "0.pth", "0.json", "0.npy"):
            header = tarfile.TarInfo(name)
            header.size = len(trap)
            tar.addfile(header, io.BytesIO(trap))
    with pytest.raises(ValueError, match="could be kept"):
        import_folder(folder, tmp_path / "shards", load_hierarchy(TREE))
    with pytest.raises(ValueError, match="annotated-00000"):
        AnnotatedDataset.open(folder)
    store, items = TargetStore(tmp_path, "t"), (Item("a", 0),)
    store.root.mkdir()
    store.path(items).write_bytes(trap)
    with pytest.raises(ValueError, match="is damaged or half-written"):
        store.read(items)
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"):
        (tmp_path / "tree.yaml").write_text(f"name: {tag} [{tmp_path / 'sprung'}]\n")
        with pytest.raises(ValueError, match=r"tree\.yaml"):
            load_hierarchy(tmp_path / "tree.yaml")
    assert not (tmp_path / "sprung").exists()
