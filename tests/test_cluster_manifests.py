"""The manifests: what Ray itself can check of them, and that they agree with the versions and folders of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}=="))


def test_ray_up_accepts_its_file_and_every_node_asks_for_the_token() -> None:
    config = yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())
    validate_config(prepare_config(config))
    starts = [c for kind in ("head", "worker") for c in config[f"{kind}_start_ray_commands"] if " start " in c]
    assert len(starts) == 2 and all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_kubernetes_cluster_has_the_pinned_ray_a_token_and_one_shared_folder() -> None:
    cluster, claim = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    spec: dict[str, Any] = cluster["spec"]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        (container,) = pod["containers"]
        assert container["image"] == "REGISTRY/cpo-ray:latest"
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def copied() -> list[str]:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    return [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]


def test_the_image_copies_what_exists() -> None:
    assert copied() and all((ROOT / source).exists() for source in copied())


def test_the_image_copies_every_folder_that_a_job_needs() -> None:
    jobs = {path.parent.name for path in ROOT.glob("*/*.py") if path.parent.name not in ("benchmarks", "tests")}
    configs = "".join(path.read_text() for path in (ROOT / "jobs").rglob("*.toml"))
    trees = {Path(found).parts[0] for found in re.findall(r'"(\w+/\w+\.yaml)"', configs)}
    assert {"cpo_ray", "jobs", "tune", "hierarchy"} <= jobs | trees <= set(copied())


def test_the_image_copies_what_the_package_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied())
