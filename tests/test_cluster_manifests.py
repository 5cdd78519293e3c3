"""The manifests: what Ray itself can check of them, and that they agree with the versions and folders of the project."""

from __future__ import annotations

import re
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import yaml
from ray._private.runtime_env.packaging import create_package
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


def test_a_submitted_job_carries_the_package_and_neither_secrets_nor_pictures_nor_runs(tmp_path: Path) -> None:
    asset = "cpo_ray/domains/toy/assets/base/unet/diffusion_pytorch_model.safetensors"
    carried = {"my.toml", "jobs/train_cpo.py", "cpo_ray/models/base.py", "hierarchy/painting.yaml", asset}
    left = {".env", ".env.production", "key.pem", ".git/config", "runs/a/adapter.safetensors", "models/sdxl/unet/config.json"}
    left |= {"pictures/a.txt", "b.JPG", "sub/c.png", "base.safetensors", "d.parquet", "mlruns/0/meta.yaml", "runs/mlflow.db"}
    for name in carried | left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path.with_suffix(".zip")
    create_package(str(tmp_path), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    assert packed - {".gitignore", ".rayignore"} == carried
    # ray up has no exceptions to what it leaves out, so that it names folders of models instead of safetensors files.
    excluded = yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())["rsync_exclude"]
    assert {".env*", "*.pem", ".git", "/runs", "/models", "*.png", "*.parquet"} <= set(excluded)


def test_the_kubernetes_cluster_has_the_pinned_ray_a_token_and_one_shared_folder() -> None:
    cluster, claim, _ = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    spec: dict[str, Any] = cluster["spec"]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        (container,) = pod["containers"]
        assert container["image"] == f"REGISTRY/cpo-ray:{project()['version']}"
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_pods_run_without_root_and_are_reached_by_their_cluster_alone() -> None:
    cluster, _, policy = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["envFrom"] == [{"secretRef": {"name": "cpo-ray-keys", "optional": True}}] and "env" not in container
        (user,) = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("USER ")]
        assert user == "USER {runAsUser}:{runAsGroup}".format(**pod["securityContext"])
    assert groups[1]["template"]["spec"]["automountServiceAccountToken"] is False
    ours = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    assert policy["spec"]["podSelector"] == ours and policy["spec"]["policyTypes"] == ["Ingress"]
    inside, operator = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": ours}]} and operator["ports"] == [{"port": 8265, "protocol": "TCP"}]


def test_the_image_has_a_pinned_base_and_is_built_from_what_it_copies_alone() -> None:
    base = next(line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("FROM "))
    assert re.fullmatch(r"FROM python:3\.1[12]\.\d+-slim-\w+", base)
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {line.removeprefix("!") for line in allowed} == set(copied())


def test_jobs_and_ray_up_leave_the_same_secrets_behind() -> None:
    secrets = (ROOT / ".rayignore").read_text().split("# Secrets\n")[1].split("\n\n")[0].splitlines()
    excluded = yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())["rsync_exclude"]
    # The token is one of the files that ray up is told to carry.
    assert len(secrets) > 10 and set(secrets) - {"auth_token"} <= set(excluded)


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


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
    assert {"pyproject.toml", project()["readme"], *project()["license-files"]} <= set(copied())
