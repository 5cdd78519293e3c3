"""What the planner says and refuses, on the embedded base in a machine that is stated; and the presets, at their real size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpo_ray.config import Config, load, override
from cpo_ray.models.bases.source import local_base
from cpo_ray.preflight import disk
from cpo_ray.preflight.durations import ideal_ratio, stages, work
from cpo_ray.preflight.findings import Finding
from cpo_ray.preflight.machine import CARDS, Resources, available, card_of
from cpo_ray.preflight.memory import GPU_PROCESS, SCORING, roles
from cpo_ray.preflight.planner import plan_findings
from cpo_ray.preflight.remedies import room
from cpo_ray.preflight.trials import Trials

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
HERE = Resources("here", 8.0, 4.0, main_bytes=60e9)
ON_GPUS = [
    "preference.optimization.gpus_per_worker=1", "expert.optimization.gpus_per_worker=1", "targets.gpus_per_actor=1",
    "evaluation.gpus_per_actor=1", "preference.optimization.micro_batch=32",  # no worker gets more than 16 of a step
]  # fmt: skip


def toy(*overrides: str) -> Config:
    return load(CONFIGS / "toy.toml", [*ON_GPUS, *overrides])


def found(config: Config, resources: Resources = HERE, pictures: int = 1280) -> list[Finding]:
    return list(plan_findings(config, local_base(config.model), resources, pictures))


def line(findings: list[Finding], words: str) -> Finding:
    (only,) = [finding for finding in findings if words in finding.sentence]
    return only


def test_every_role_is_told_with_its_parts() -> None:
    config = toy("machine.gpu=L4")
    findings = found(config)
    assert all(finding.verdict != "missing" and finding.planned for finding in findings)
    for _, role in roles(config):
        need = role(config, local_base(config.model))
        sentence = line(findings, need.role).sentence
        assert f"takes {need.bytes / 1e9:.1f} GB of a GPU's 23.7 GB" in sentence and "activations" in sentence


def test_what_cannot_fit_is_refused_with_a_setting_that_makes_it_fit() -> None:
    """The embedded model trains in 0.2 GB beside CUDA, most of which is activations of 16 samples."""
    needed = dict(roles(toy()))["preference.optimization"](toy(), local_base(toy().model))
    gigabytes = (needed.bytes - 0.1e9) / 1e9
    config = toy(f"machine.gpu_gigabytes={gigabytes}")
    refused = line(found(config), "a worker of stage 2")
    assert refused.verdict == "missing"
    (change,) = re.findall(r"it fits with (\S+)$", refused.sentence)
    assert change == "preference.optimization.micro_batch=8"
    assert line(found(override(config, [change])), "a worker of stage 2").verdict == "ok"


def test_processes_that_share_a_gpu_get_their_part_of_it() -> None:
    config = toy("machine.gpu_gigabytes=2", "targets.gpus_per_actor=0.5", "targets.forward_batch=8")
    refused = line(found(config), "an actor that computes targets")
    assert refused.verdict == "missing" and "of its share of 0.5 of a GPU, 1.0 GB" in refused.sentence
    assert "it fits with targets.gpus_per_actor=1" in refused.sentence
    need = dict(roles(config))["targets"](config, local_base(config.model))
    assert room(need, 2e9) == 1e9


def test_where_nothing_helps_it_says_so() -> None:
    small = [
        "targets.shard_size=2",
        "evaluation.batch=2",
        "preference.optimization.micro_batch=2",
        "expert.optimization.micro_batch=2",
    ]
    config = toy(*small, f"machine.gpu_gigabytes={GPU_PROCESS / 2e9}")
    refusals = [finding.sentence for finding in found(config) if finding.verdict == "missing"]
    assert len(refusals) == 4
    assert all("take a GPU of more memory" in sentence for sentence in refusals)


def test_a_gpu_may_be_seen_stated_or_unknown() -> None:
    seen = Resources("here", 8.0, 1.0, "NVIDIA H100 80GB HBM3", 84.9e9)
    assert "of a GPU's 84.9 GB" in line(found(toy(), seen), "a worker of stage 2").sentence
    assert "of a GPU's 23.7 GB" in line(found(toy("machine.gpu=L4"), seen), "a worker of stage 2").sentence
    unknown = line(found(toy()), "a worker of stage 2")
    assert unknown.verdict == "note" and "machine.gpu_gigabytes states it" in unknown.sentence
    (refused,) = found(toy("machine.gpu=Abacus"))
    assert refused.verdict == "missing" and "take one of" in refused.sentence and "H100" in refused.sentence
    assert card_of("NVIDIA A100-SXM4-40GB", CARDS["L4"]).gigabytes < card_of("NVIDIA A100-SXM4-80GB", CARDS["L4"]).gigabytes
    assert available().main_bytes  # this machine's


def test_main_memory_is_counted_over_what_runs_at_the_same_time() -> None:
    cpus = ["preference.optimization.gpus_per_worker=0", "expert.optimization.gpus_per_worker=0", "targets.gpus_per_actor=0"]
    config = toy(*cpus, "evaluation.gpus_per_actor=0")
    together = line(found(config), "main memory; ")
    apart = line(found(override(config, ["targets.overlap=false"])), "main memory; ")
    gigabytes = [float(re.findall(r"up to (\S+) GB", finding.sentence)[0]) for finding in (together, apart)]
    assert together.verdict == apart.verdict == "ok" and gigabytes[0] > gigabytes[1]
    small = line(found(config, Resources("here", 2.0, 0.0, main_bytes=2e9)), "main memory; ")
    assert small.verdict == "missing" and "targets.overlap = false" in small.sentence


def test_disk_is_counted_by_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 steps of 32 over 100 pictures: 320 items, all distinct with 4 draws. A latent is 8 x 16 x 16; per value six float16
    # tensors and one float32, so 16 bytes, and 2 for each value of the prompt's conditions.
    config = toy("preference.optimization.steps=10", "targets.draws=4")
    base = local_base(config.model)
    row = disk.row_of(config, base)
    assert row.latent == 8 * 16 * 16 and row.text > 0
    assert disk.target_bytes(config, base, 100) == 320 * (16 * row.latent + 2 * row.text)
    assert disk.target_bytes(override(config, ["targets.draws=1"]), base, 100) == 100 * (16 * row.latent + 2 * row.text)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 10**6)
    full = line(found(config), "targets take up to")
    assert full.verdict == "missing" and "lower targets.draws" in full.sentence
    # A run that goes on has written a part of it, and is not refused for what it may need no more.
    (tmp_path / "toy").mkdir()
    assert line(found(toy(f"run.output={tmp_path}")), "targets take up to").verdict == "note"


def test_a_sweep_is_planned_with_all_its_trials() -> None:
    config = load(CONFIGS / "toy_sweep.toml")
    base = local_base(config.model)

    def counted(count: int, at_once: int, checkpointed: int, drawn: int, **largest: Config) -> Trials:
        return Trials(count, at_once, checkpointed, drawn, tried={}, largest=largest or {"ω 3": config})

    trials = counted(5, 2, 2, 1320)
    planned, single = (list(plan_findings(config, base, HERE, 1280, number)) for number in (trials, None))
    assert all(finding.verdict == "ok" for finding in planned)
    assert "80 in stage 1, 400 in 5 trials" in line(planned, "optimizer steps").sentence
    assert [one.name for one in stages(config, base, 1280, 1e11, trials)] == ["stage 1", "5 trials"]
    stage_two, all_trials = stages(config, base, 1280, 1e11)[1], stages(config, base, 1280, 1e11, trials)[1]
    assert all_trials.targets == stage_two.targets  # one set of them
    assert 2 * stage_two.training < all_trials.training < 5 * stage_two.training  # two and three turns' worth, and the pictures
    none, one, five = (disk.training_bytes(config, base, counted(*count, 0)) for count in ((0, 1, 0), (1, 1, 1), (5, 2, 2)))
    assert five[0] - none[0] == 2 * (one[0] - none[0])  # checkpoints of those that run
    assert five[1] - none[1] == 5 * (one[1] - none[1])  # exports of all
    # Two trainings and what draws for them beside each other.
    lines = [line(each, "all processes at a time").sentence for each in (planned, single)]
    memory = [float(re.findall(r"up to (\S+) GB", sentence)[0]) for sentence in lines]
    assert memory[0] > memory[1]
    crowded = line(list(plan_findings(config, base, Resources("here", 2.0, 0.0, main_bytes=2e9), 1280, trials)), "main memory; ")
    assert crowded.verdict == "missing"
    # Trials of several sizes are planned for as the one that takes most.
    ranks = {f"rank{rank}": override(config, [f"preference.lora.rank={rank}"]) for rank in (4, 64, 8)}
    several = list(plan_findings(config, base, HERE, 1280, counted(5, 2, 2, 1320, **ranks)))
    assert line(several, "all trials are planned for as").sentence == "all trials are planned for as rank64"
    written = [re.findall(r"checkpoints (\S+) GB", line(each, "targets take up to").sentence) for each in (planned, several)]
    assert float(written[1][0]) > float(written[0][0])


def test_time_follows_from_the_operations_and_the_rate() -> None:
    config, base = toy("machine.teraflop_per_second=1", 'preference.baselines=["sft", "cpo"]'), local_base(toy().model)
    sentence = line(found(config), "at 1 TFLOP/s of a GPU, as stated").sentence
    assert "stage 1" in sentence and "baseline sft" in sentence and "evaluation" in sentence
    slow, fast = (stages(config, base, 1280, rate) for rate in (1e12, 2e12))
    assert "80 in stage 1, 80 in stage 2, 80 in baseline sft" in line(found(config), "optimizer steps").sentence
    assert [stage.name for stage in slow] == ["stage 1", "stage 2", "baseline sft", "baseline cpo"]
    assert all(one.seconds == pytest.approx(2 * other.seconds) for one, other in zip(slow, fast, strict=True))
    assert slow[1].seconds == max(slow[1].targets, slow[1].training) and slow[3].targets == 0
    # What is computed follows from what an objective needs: this run's main one calls no expert, the baseline does.
    turned = stages(toy("preference.objective=sft", 'preference.baselines=["cpo"]'), base, 1280, 1e12)
    assert [stage.targets for stage in turned[1:]] == [slow[2].targets, slow[1].targets]
    unknown = toy()
    unknown = unknown.model_copy(update={"machine": unknown.machine.model_copy(update={"teraflop_per_second": None})})
    assert line(found(unknown), "is not stated").verdict == "note"


def test_the_ratio_of_targets_to_training_falls_with_every_epoch_on_the_same_draws() -> None:
    epochs = [toy(f"preference.optimization={{epochs={number}, gpus_per_worker=1}}", "targets.draws=2") for number in (1, 2, 4)]
    works = [work(config.preference.optimization, 1280, config.targets.draws) for config in epochs]
    assert [(each.trained, each.distinct) for each in works] == [(1280, 1280), (2560, 2560), (5120, 2560)]
    ratios = [ideal_ratio(config, local_base(config.model), 1280) for config in epochs]
    assert ratios[0] == pytest.approx(ratios[1]) == pytest.approx(2 * ratios[2])
    assert f"when {ratios[0]:.1f} GPUs compute them" in line(found(epochs[0]), "keep up with its training").sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl_lora", "sdxl_full", "flux_lora", "flux_full"])
def test_a_preset_fits_on_the_gpus_that_its_comment_names(name: str) -> None:
    text = (CONFIGS / f"{name}.toml").read_text()
    needs = {section: role(load(CONFIGS / f"{name}.toml"), None) for section, role in roles(load(CONFIGS / f"{name}.toml"))}
    stated = dict(re.findall(r"#   (\S+) +([0-9.]+) GB", text))
    assert {section: f"{need.bytes / 1e9:.1f}" for section, need in needs.items()} == stated
    (gigabytes,) = re.findall(r"for GPUs of (\d+) GB", text)
    assert max(need.bytes for need in needs.values()) <= 0.97e9 * float(gigabytes)


@pytest.mark.parametrize(
    ("scorer", "parameters"),
    [("clip", 427_616_513), ("pickscore", 986_109_441), ("aesthetic", 303_966_208 + 927_969), ("fid", 21_785_568)],
)
def test_the_memory_of_a_scorer_is_that_of_its_published_model(scorer: str, parameters: int) -> None:
    config = load(CONFIGS / "toy.toml", [f'evaluation.scorers=["{scorer}"]', "evaluation.batch=8"])
    base = local_base(config.model)
    (need,) = [role(config, base) for section, role in roles(config) if section == SCORING]
    assert need.parts[f"{scorer}'s weights"] == 4 * parameters
    assert 1e6 < need.parts["activations of a forward"] < 1e9
    drawing, measuring = (dict(roles(config, sweep=sweep))["evaluation"](config, base) for sweep in (False, True))
    assert measuring.bytes - drawing.bytes == 4 * parameters
