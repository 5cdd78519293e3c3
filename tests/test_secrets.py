"""Keys and passwords: refused where they would be written down, and found nowhere that a run leaves something."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ray import cloudpickle

from cpo_ray.config import ConfigError, dump, load, load_as
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.config.text import redacted
from cpo_ray.tracking import RunDescription, open_experiment, resolve_uri, start_run, ui_command
from cpo_ray.tracking.store import forgiving

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
CANARY = "sk-cAnArY-0123456789"
#: Where a key or a password may be while jobs run.
VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "RAY_AUTH_TOKEN")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pa:ss@host:5000/x", "http://…@host:5000/x"),
        ("https://token@host", "https://…@host"),
        ("postgresql+psycopg2://me:p/a@ss@db/mlflow", "postgresql+psycopg2://me:…@db/mlflow"),
        ("mysql://db/mlflow?user=me&password=no&ssl=1", "mysql://db/mlflow?user=me&password=…&ssl=1"),
        ("it failed at http://a:b@c, and https://d:e@f too", "it failed at http://…@c, and https://…@f too"),
        ("postgresql://me@db/mlflow", "postgresql://me@db/mlflow"),
        ("sqlite:////data/a:b@c/mlflow.db", "sqlite:////data/a:b@c/mlflow.db"),
        ("https://host:5000/a@b?page=2", "https://host:5000/a@b?page=2"),
    ],
)
def test_passwords_in_addresses_are_not_shown(address: str, shown: str) -> None:
    assert redacted(address) == shown


@pytest.mark.parametrize("uri", ["http://me:{}@host:5000", "https://{}@host", "postgresql://me:{}@db/x", "http://h?token={}"])
def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"password or a token.*MLFLOW_TRACKING_PASSWORD") as told:
        load(CONFIGS / "toy.toml", [f"tracking.uri={uri.format(CANARY)}"])
    assert CANARY not in str(told.value) and "tracking.uri" in str(told.value)


@pytest.mark.parametrize("override", ["key_variable", "url", "url.deeper", "api_key"])
def test_a_key_in_the_place_of_a_setting_is_not_repeated(override: str) -> None:
    value = CANARY if "key" in override else f"https://me:{CANARY}@host/v1"
    with pytest.raises(ConfigError) as told:
        load_as(AnnotationConfig, CONFIGS / "annotate_endpoint.toml", [f"annotation.back_end.{override}={value}"])
    assert CANARY not in str(told.value)


def test_keys_of_the_environment_are_nowhere_that_a_run_leaves_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Walk over config.toml, MLflow's files and logs, what actors are sent, and what is printed."""
    for name in VARIABLES:
        monkeypatch.setenv(name, CANARY)
    overrides = ["annotation.back_end.url=https://host/v1", "annotation.back_end.key_variable=OPENAI_API_KEY"]
    asking = load_as(AnnotationConfig, CONFIGS / "annotate_endpoint.toml", overrides)
    config = load(CONFIGS / "toy.toml", [f"run.output={tmp_path}"])
    with caplog.at_level(logging.DEBUG):
        uri = resolve_uri(config.tracking, tmp_path)
        experiment = open_experiment(uri, "canary", tmp_path / "mlartifacts")
        described = RunDescription(dump(config), config.model_dump(mode="json"), {}, ui_command(uri))
        tracker = start_run(experiment, "canary", tmp_path / "run", described)
        with tracker.start() as live:
            live.log(1, {"loss": 1.0})
        tracker.finish()
        lost = open_experiment("http://127.0.0.1:9", "canary", tmp_path / "nowhere")
    assert tracker.run_id is not None and lost.id is None
    sent = b"".join(map(cloudpickle.dumps, (asking, config, tracker)))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = caplog.text + "".join(capfd.readouterr()) + repr(asking) + asking.model_dump_json()
    assert b"canary" in written and "127.0.0.1" in said, "the walk sees what it looks at"
    for found in (sent, written, said.encode()):
        assert CANARY.encode() not in found


def test_a_lost_store_is_told_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    """An address that is not from a configuration, such as one of MLflow's own errors."""
    with caplog.at_level(logging.WARNING), forgiving("the run"):
        raise OSError(f"connection to postgresql://me:{CANARY}@db/x refused")
    assert CANARY not in caplog.text and "postgresql://me:…@db/x" in caplog.text
