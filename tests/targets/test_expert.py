"""The frozen models as a callable, on a tiny SDXL and a tiny FLUX that diffusers saved and adapters that change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cpo_ray.config import ConditionMixture, Flow
from cpo_ray.config.registry import FAMILIES
from cpo_ray.core.plan import Batch, Item
from cpo_ray.core.prompts import condition_texts
from cpo_ray.core.schema import TARGET_TENSORS
from cpo_ray.data import buckets
from cpo_ray.data.picture import PictureError
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models import family
from cpo_ray.objectives import ExpertDifferences
from cpo_ray.targets.expert import Expert, ExpertSpec, frozen_inputs, target_store
from cpo_ray.targets.reader import TargetReader
from cpo_ray.targets.store import frozen_fingerprint

ITEMS = (Item("picture-3", 0), Item("picture-1", 0), Item("picture-7", 1), Item("picture-1", 1))


@pytest.fixture(scope="module", params=FAMILIES.names)
def expert_spec(request: pytest.FixtureRequest, expert_spec_of: Callable[[str], ExpertSpec]) -> ExpertSpec:
    return expert_spec_of(request.param)


@pytest.fixture(scope="module")
def expert(expert_spec: ExpertSpec) -> Expert:
    torch.set_num_threads(1)
    return Expert(expert_spec)


def images(spec: ExpertSpec, items: Sequence[Item]) -> list[bytes]:
    return AnnotatedDataset.open(spec.dataset).images([item.sample_id for item in items])


@pytest.fixture(scope="module")
def shard(expert: Expert, expert_spec: ExpertSpec) -> dict[str, Tensor]:
    return expert(ITEMS, images(expert_spec, ITEMS))


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def test_the_shard_is_as_the_schema_says(shard: dict[str, Tensor]) -> None:
    dtypes = {"float16": torch.float16, "float32": torch.float32, "int64": torch.int64}
    groups = {name.partition(".")[0] + (".*" if "." in name else "") for name in shard}
    assert groups == set(TARGET_TENSORS)
    for name, tensor in shard.items():
        stated = TARGET_TENSORS[name.partition(".")[0] + (".*" if "." in name else "")]
        assert tensor.dtype in {dtype for word, dtype in dtypes.items() if word in stated}, name
        assert len(tensor) == (3 if name.startswith("text.") else 4), name  # picture-1 is there twice with one prompt
    assert shard["x_t"].shape == (4, 8, 16, 16)
    assert shard["prompt_index"].tolist() == [0, 1, 2, 1]


def test_the_same_bytes_on_repetition_and_from_another_expert(
    expert: Expert, expert_spec: ExpertSpec, shard: dict[str, Tensor], tmp_path: Path
) -> None:
    store = target_store(expert_spec, tmp_path)
    first = store.write(ITEMS, shard, {}).read_bytes()
    torch.manual_seed(99)
    for other in (expert, Expert(expert_spec)):
        assert store.write(ITEMS, other(ITEMS, images(expert_spec, ITEMS)), {}).read_bytes() == first


def test_a_samples_row_does_not_depend_on_its_place(expert: Expert, expert_spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    turned = expert(ITEMS[::-1], images(expert_spec, ITEMS[::-1]))
    for name in ("x_t", "timestep", "target", *(name for name in shard if name.startswith("micro."))):
        assert torch.equal(turned[name].flip(0), shard[name]), name
    for name in ("reference", "null_minus_reference", "positive_minus_all"):
        torch.testing.assert_close(turned[name].flip(0).float(), shard[name].float(), rtol=1e-3, atol=1e-5)
    # Two draws of one picture have their own noise and time.
    assert shard["timestep"][1] != shard["timestep"][3]
    assert relative_error(shard["target"][1], shard["target"][3].double()) > 0.5


def test_two_forwards_make_a_shard_and_a_bound_only_splits_them(
    expert: Expert, expert_spec: ExpertSpec, shard: dict[str, Tensor]
) -> None:
    before = expert.forwards
    expert(ITEMS, images(expert_spec, ITEMS))
    assert expert.forwards - before == 2
    bounded = Expert(replace(expert_spec, forward_batch=3))
    pieces = bounded(ITEMS, images(expert_spec, ITEMS))
    assert bounded.forwards == 2 + 6  # ⌈4 / 3⌉ of the reference, ⌈16 / 3⌉ of θ1
    for name, tensor in shard.items():
        torch.testing.assert_close(pieces[name].float(), tensor.float(), rtol=1e-3, atol=1e-5)


def test_the_vae_encodes_about_a_megapixel_at_a_time(
    expert: Expert, expert_spec: ExpertSpec, shard: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, made = expert._encoders.encode_pictures, list[int]()

    def counted(part: Tensor) -> Tensor:
        made.append(len(part))
        return encode(part)

    monkeypatch.setattr(expert._encoders, "encode_pictures", counted)
    expert(ITEMS * 16, images(expert_spec, ITEMS * 16))
    assert made == [64], "a shard of the embedded domain's size is encoded as one"
    monkeypatch.setattr(buckets, "ENCODED_PIXELS", 3 * 64 * 64 + 1)
    pieces = expert(ITEMS, images(expert_spec, ITEMS))
    monkeypatch.setattr(buckets, "ENCODED_PIXELS", 64)
    expert(ITEMS[:2], images(expert_spec, ITEMS[:2]))
    assert made[1:] == [3, 1, 1, 1]
    torch.testing.assert_close(pieces["x_t"].float(), shard["x_t"].float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("offload", [False, True])
def test_text_encoders_in_main_memory_visit_the_device_to_encode_only(
    expert_spec: ExpertSpec, shard: dict[str, Tensor], offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(expert: Expert) -> set[str]:
        parts: Any = expert._encoders
        encoders = [model for name, model in parts.text.components.items() if name.startswith("text_encoder")]
        return {values.device.type for encoder in encoders for values in encoder.parameters()}

    # Nothing that was on this device comes back from it.
    assert places(Expert(replace(expert_spec, device="meta", offload_text_encoders=offload))) == {"cpu" if offload else "meta"}

    expert, placed = Expert(replace(expert_spec, device="cpu:0", offload_text_encoders=offload)), list[str]()
    place = expert._encoders.place_text

    def follow(device: torch.device) -> None:
        placed.append(str(device))
        place(device)

    monkeypatch.setattr(expert._encoders, "place_text", follow)
    made = expert(ITEMS, images(expert_spec, ITEMS))
    assert placed == (["cpu:0", "cpu"] if offload else [])
    assert all(torch.equal(made[name], values) for name, values in shard.items())


def test_the_contrast_is_within_half_a_percent_of_float64(expert_spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    """Every output once more in float64, each from a forward of its own, with texts made here."""
    model, found = expert_spec.model, family(expert_spec.model)
    encoders = found.load_encoders(model, torch.device("cpu"))
    dataset, tree = AnnotatedDataset.open(expert_spec.dataset), load_hierarchy(expert_spec.hierarchy)
    texts = [condition_texts(dataset.labels(i.sample_id), tree, encoders.count_tokens, encoders.token_limit)[0] for i in ITEMS]
    base, theta = found.load_denoiser(model).double(), found.load_denoiser(model, expert_spec.adapter).double()
    micro = {name[6:]: rows.double() for name, rows in shard.items() if name.startswith("micro.")}

    def output(denoiser: torch.nn.Module, prompts: list[str]) -> Tensor:
        conditioning = {name: values.half().double() for name, values in encoders.encode_prompts(prompts).items()}
        with torch.no_grad():
            return found.predict(denoiser, shard["x_t"].double(), shard["timestep"], conditioning | micro)

    reference = output(base, [t.content for t in texts])
    positive, negative = output(theta, [t.positive for t in texts]), output(theta, [t.negative for t in texts])
    null, all_ = output(theta, [t.null for t in texts]), output(theta, [t.all for t in texts])
    stored = ExpertDifferences(**{name: shard[name] for name in ExpertDifferences.__dataclass_fields__})
    assert relative_error(null, reference) > 0.01  # the adapter does something
    for omega_w in (1.0, 2.0, 3.0):
        for omega_l in (1.0, 2.0, 3.0):
            winning = (1 - omega_w) * negative + omega_w * positive
            losing = (1 - omega_l) * null + omega_l * all_
            assert relative_error(stored.contrast(omega_w, omega_l), winning - losing) < 0.005
            assert relative_error(stored.winning(omega_w), winning) < 0.001
            assert relative_error(stored.losing(omega_l), losing) < 0.001


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_student_equal_to_the_reference_reproduces_it(expert_spec: ExpertSpec, dtype: str, tmp_path: Path) -> None:
    """Through the store and the reader, as the trainer does it."""
    spec = replace(expert_spec, model=expert_spec.model.model_copy(update={"dtype": dtype}))
    store = target_store(spec, tmp_path)
    store.write(ITEMS, Expert(spec)(ITEMS, images(spec, ITEMS)), {})
    batch = TargetReader(store, [ITEMS], timeout_seconds=1, run_id="run").batch(Batch(ITEMS, (1.0, 1.0, 1.0, 0.0)))
    found = family(spec.model)
    with torch.no_grad():
        output = found.predict(found.load_denoiser(spec.model), *batch.inputs(getattr(torch, dtype)))
    assert batch.expert is not None
    assert batch.weights.tolist() == [1, 1, 1, 0]
    assert torch.equal(output.float(), batch.expert.reference)


def test_noise_and_target_belong_together(expert_spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    """x_t and the velocity give back the latent of the picture itself."""
    process = family(expert_spec.model).load_process(expert_spec.model)
    clean = process.predict_x0(shard["x_t"].float(), shard["target"].float(), shard["timestep"])
    torch.testing.assert_close(clean[1], clean[3], rtol=0, atol=5e-3)  # one picture, two draws
    assert not torch.allclose(clean[1], clean[2], atol=5e-2)


def test_what_belongs_to_a_sample_beside_its_text_is_stored(expert_spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    if expert_spec.model.family == "flux":
        assert shard["micro.guidance"].tolist() == [1, 1, 1, 1]
        return
    # 96 x 80 is scaled to 77 x 64, of which 6 columns on the left are cut.
    assert shard["micro.time_ids"].tolist() == [[80, 96, 0, 6, 64, 64], *[[64, 64, 0, 0, 64, 64]] * 3]


def test_all_three_models_are_told_one_guidance(flux_expert_spec: ExpertSpec) -> None:
    """The reference and θ1 compute with the value that is stored for the trained model."""
    model = flux_expert_spec.model.model_copy(update={"flow": Flow(guidance=3.5)})
    found, pictures = family(model), images(flux_expert_spec, ITEMS)
    shard = Expert(replace(flux_expert_spec, model=model))(ITEMS, pictures)
    usual = Expert(flux_expert_spec)(ITEMS, pictures)
    assert shard["micro.guidance"].tolist() == [3.5] * 4
    text = {name[5:]: rows[shard["prompt_index"]].float() for name, rows in shard.items() if name.startswith("text.")}
    null = found.load_encoders(model, torch.device("cpu")).encode_prompts([""])
    nothing = {name: rows.half().float().expand(4, *rows.shape[1:]) for name, rows in null.items()}
    for adapter, words, name in ((None, text, "reference"), (flux_expert_spec.adapter, nothing, "null_minus_reference")):
        with torch.no_grad():
            told = {**words, "guidance": shard["micro.guidance"]}
            output = found.predict(found.load_denoiser(model, adapter), shard["x_t"].float(), shard["timestep"], told)
        stored = shard["reference"] + (0 if adapter is None else shard[name].float())
        torch.testing.assert_close(output, stored, rtol=1e-3, atol=1e-4)
        assert relative_error(usual[name], shard[name].double()) > 1e-3, "guidance does nothing, so this shows nothing"


def test_supervised_targets_draw_their_text_and_share_the_noise(expert_spec: ExpertSpec, shard: dict[str, Tensor]) -> None:
    plain = replace(expert_spec, kind="supervised", adapter=None)
    mixed = replace(plain, mixture=ConditionMixture(null=1, negative=0, content=0, content_positive=0, all=0))
    pictures = images(expert_spec, ITEMS)
    content, null = Expert(plain)(ITEMS, pictures), Expert(mixed)(ITEMS, pictures)
    for name in ("x_t", "target", "timestep", "prompt_index", "text.prompt_embeds"):
        assert torch.equal(content[name], shard[name]), name
    assert "reference" not in content
    assert torch.equal(null["x_t"], shard["x_t"])
    empty = family(expert_spec.model).load_encoders(expert_spec.model, torch.device("cpu")).encode_prompts([""])
    assert torch.equal(null["text.prompt_embeds"], empty["prompt_embeds"].half())
    assert null["prompt_index"].tolist() == [0, 0, 0, 0]


def test_attributes_that_do_not_fit_are_counted(expert_spec: ExpertSpec) -> None:
    expert = Expert(expert_spec)
    expert._encoders.token_limit = 12
    expert(ITEMS[:1], images(expert_spec, ITEMS[:1]))
    labels = AnnotatedDataset.open(expert_spec.dataset).labels("picture-3")
    assert 0 < expert.dropped_attributes < len(labels.positive_ids) + len(labels.negative_ids) + 1


def test_a_corrupt_picture_is_named(expert: Expert, expert_spec: ExpertSpec) -> None:
    pictures = images(expert_spec, ITEMS[:2])
    with pytest.raises(PictureError, match="sample 'picture-1': the image file is damaged"):
        expert(ITEMS[:2], [pictures[0], pictures[1][:200]])


def test_the_address_follows_what_is_computed(expert_spec: ExpertSpec) -> None:
    plain = replace(expert_spec, kind="supervised", adapter=None)
    specs = [expert_spec, plain, replace(plain, mixture=ConditionMixture()), replace(expert_spec, seed=6)]
    specs.append(replace(plain, mixture=ConditionMixture(attribute_dropout=0.1)))
    specs.append(replace(expert_spec, model=expert_spec.model.model_copy(update={"flow": Flow(guidance=3.5)})))
    assert len({frozen_fingerprint(frozen_inputs(spec)) for spec in specs}) == 6
    assert frozen_inputs(replace(expert_spec, device="cuda")) == frozen_inputs(expert_spec)


def test_what_cannot_be_addressed_or_computed_is_refused(expert_spec: ExpertSpec) -> None:
    unpinned = replace(expert_spec, model=expert_spec.model.model_copy(update={"base": "someone/painter"}))
    with pytest.raises(ValueError, match=r"someone/painter.*needs model\.revision"):
        frozen_inputs(unpinned)
    with pytest.raises(ValueError, match="kind 'expert' needs one"):
        replace(expert_spec, adapter=None)
