"""Scorers with models: names of weights and formulas, against the published architectures written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny_scorers import PROMPTS, TINY_CLIP, inception_weights, noise_pictures, randomised, tiny_clip
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer, CLIPConfig, CLIPModel

from cpo_ray.evaluation.scorers.aesthetic import Aesthetic, AestheticSettings
from cpo_ray.evaluation.scorers.base import Drawn, NotScored
from cpo_ray.evaluation.scorers.clip import ClipScore, ClipSettings
from cpo_ray.evaluation.scorers.fid import FID, FIDSettings
from cpo_ray.evaluation.scorers.hpsv2 import HPSv2, HPSv2Settings
from cpo_ray.evaluation.scorers.imagereward import ImageReward, ImageRewardSettings
from cpo_ray.evaluation.scorers.readers.base import find_weights, load_into, square
from cpo_ray.evaluation.scorers.readers.blip import DEVIATION, LONGEST, MEAN, BlipReader
from cpo_ray.evaluation.scorers.readers.clip import ClipReader, clip_names, linear_head

PICTURES = noise_pictures(4)


def attention(x: Tensor, context: Tensor, parts: tuple[Tensor, ...], heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of x (B, T, D) to the context, by its definition; weight and bias of q, k, v, output are its parts."""
    query, key, value = (functional.linear(given, *parts[2 * i : 2 * i + 2]) for i, given in enumerate((x, context, context)))
    apart = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value)]
    weights = apart[0] @ apart[1].transpose(-1, -2) / apart[0].shape[-1] ** 0.5
    weights = (weights if mask is None else weights + mask).softmax(-1)
    return functional.linear((weights @ apart[2]).transpose(1, 2).flatten(-2), *parts[6:8])


def norm(x: Tensor, tensors: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return functional.layer_norm(x, weight.shape, weight, tensors[f"{name}.bias"], eps)


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def joined(tensors: dict[str, Tensor], name: str, output: str) -> tuple[Tensor, ...]:
    """The parts of an attention whose three inputs are one matrix."""
    weights, biases = tensors[f"{name}weight"].chunk(3), tensors[f"{name}bias"].chunk(3)
    pairs = [each for pair in zip(weights, biases, strict=True) for each in pair]
    return (*pairs, tensors[f"{output}.weight"], tensors[f"{output}.bias"])


def open_clip_tensors() -> dict[str, Tensor]:
    """Random weights under open_clip's names, in the sizes of TINY_CLIP with a vocabulary of 40."""
    found: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (16,),
        "visual.positional_embedding": (5, 16),
        "visual.conv1.weight": (16, 3, 14, 14),
        "visual.proj": (16, 8),
        "token_embedding.weight": (40, 12),
        "positional_embedding": (16, 12),
        "text_projection": (12, 8),
        "logit_scale": (),
    }
    for name, width in (("visual.ln_pre", 16), ("visual.ln_post", 16), ("ln_final", 12)):
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for below, width in (("visual.", 16), ("", 12)):
        for number in range(2):
            block = f"{below}transformer.resblocks.{number}."
            found |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
            for name, made, given in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 2 * width, width),
                ("mlp.c_proj", width, 2 * width),
            ):
                found |= {f"{block}{name}.weight": (made, given), f"{block}{name}.bias": (made,)}
            for name in ("ln_1", "ln_2"):
                found |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(1)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in found.items()}


def open_clip_cosine(tensors: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """The cosine between picture and text as open_clip computes it; the text ends at its largest id."""

    def blocks(x: Tensor, below: str, heads: int, mask: Tensor | None) -> Tensor:
        for number in range(2):
            name = f"{below}transformer.resblocks.{number}."
            inside = norm(x, tensors, f"{name}ln_1")
            x = x + attention(inside, inside, joined(tensors, f"{name}attn.in_proj_", f"{name}attn.out_proj"), heads, mask)
            inside = functional.gelu(linear(norm(x, tensors, f"{name}ln_2"), tensors, f"{name}mlp.c_fc"))
            x = x + linear(inside, tensors, f"{name}mlp.c_proj")
        return x

    seen = functional.conv2d(pixels, tensors["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    start = tensors["visual.class_embedding"].expand(len(seen), 1, -1)
    seen = norm(torch.cat((start, seen), 1) + tensors["visual.positional_embedding"], tensors, "visual.ln_pre")
    seen = norm(blocks(seen, "visual.", 2, None)[:, 0], tensors, "visual.ln_post") @ tensors["visual.proj"]
    length = ids.shape[1]
    read = tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][:length]
    read = norm(blocks(read, "", 3, torch.full((length, length), -torch.inf).triu(1)), tensors, "ln_final")
    read = read[torch.arange(len(ids)), ids.argmax(1)] @ tensors["text_projection"]
    return functional.cosine_similarity(seen, read)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_open_clips_names_lead_to_open_clips_numbers(tmp_path: Path, prefix: str) -> None:
    """HPSv2 and PickScore are cosines of such a model; the id of the end is the largest."""
    tensors = open_clip_tensors()
    ids = torch.tensor([[1, 5, 7, 39, 0], [1, 9, 39, 0, 0]])
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    text = TINY_CLIP["text_config"] | {"vocab_size": 40, "eos_token_id": 39, "bos_token_id": 1, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig.from_dict(TINY_CLIP | {"text_config": text})).eval()
    load_into(model, clip_names({prefix + name: values for name, values in tensors.items()}, "here"), "here")
    with torch.no_grad():
        found = ClipReader(model)(pixels, ids, torch.ones_like(ids))
    torch.testing.assert_close(found[:, 0], open_clip_cosine(tensors, pixels, ids), rtol=1e-4, atol=1e-5)


def test_the_clip_score_is_the_cosine_of_the_published_model(tmp_path: Path) -> None:
    model = tiny_clip(tmp_path)
    reader = ClipScore(ClipSettings(name="clip", weights=str(tmp_path))).open_reader()
    rows = reader.read(PICTURES, PROMPTS)
    assert rows.shape == (4, 1) and rows.dtype == np.float32 and np.ptp(rows) > 1e-4
    with torch.no_grad():
        outputs = model(pixel_values=reader.pixels(PICTURES), **reader.tokens(PROMPTS))
    # The library's logits are the same cosines times its scale.
    cosines = (outputs.logits_per_image.diagonal() / model.logit_scale.exp()).detach()
    np.testing.assert_allclose(rows[:, 0], cosines.numpy(), rtol=1e-4, atol=1e-6)
    score = ClipScore().score(Drawn(PICTURES, PROMPTS, None, rows))
    assert score.dtype == np.float64 and score.tolist() == rows[:, 0].tolist()


def test_hpsv2_sees_the_whole_picture_and_clip_its_middle(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    wide = [np.concatenate([np.zeros_like(one), one, np.zeros_like(one)], axis=1) for one in PICTURES]
    hps = HPSv2(HPSv2Settings(name="hpsv2", weights=str(tmp_path))).open_reader()
    assert hps.fit == "pad"
    seen = hps.pixels(wide)[0] * torch.tensor(hps.deviation).view(3, 1, 1) + torch.tensor(hps.mean).view(3, 1, 1)
    assert seen[:, :5].abs().max() < 1e-6 < seen[:, 14].max()  # black above a picture that is wider than high


@pytest.mark.parametrize(("fit", "box"), [("crop", (10, 0, 50, 40)), ("stretch", None), ("pad", None)])
def test_pictures_are_resized_as_pil_does(fit: str, box: tuple[int, int, int, int] | None) -> None:
    picture = noise_pictures(1, side=40)[0][:, :]
    picture = np.concatenate([picture, picture[:, :12]], axis=1)  # (40, 60)
    image = Image.fromarray(picture)
    if fit == "crop":
        image = image.resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20))
    elif fit == "stretch":
        image = image.resize((20, 20), Image.Resampling.BICUBIC)
    else:
        small = image.resize((20, 13), Image.Resampling.BICUBIC)
        image = Image.new("RGB", (20, 20))
        image.paste(small, (0, 3))
    found = (square(picture, 20, fit) * 255).permute(1, 2, 0).numpy()  # type: ignore[arg-type]
    assert np.abs(found - np.asarray(image, dtype=np.float32)).max() <= 1


def test_the_aesthetic_head_is_five_products_of_the_unit_vector(tmp_path: Path) -> None:
    model = tiny_clip(tmp_path / "clip")
    head = randomised(linear_head(8), seed=3)
    save_file({f"layers.{name}": values for name, values in head.items()}, tmp_path / "head.safetensors")
    settings = AestheticSettings(name="aesthetic", weights=str(tmp_path / "head.safetensors"), clip=str(tmp_path / "clip"))
    reader = Aesthetic(settings).open_reader()
    with torch.no_grad():
        vector = model.visual_projection(model.vision_model(pixel_values=reader.pixels(PICTURES)).pooler_output)
    expected = vector / vector.norm(dim=-1, keepdim=True)
    for name in "02467":
        expected = expected @ head[f"{name}.weight"].T + head[f"{name}.bias"]
    np.testing.assert_allclose(reader.read(PICTURES, PROMPTS), expected.numpy(), rtol=1e-4)
    together = {f"clip.{name}": each for name, each in model.state_dict().items() if name.startswith("vis")}
    together |= {f"mlp.layers.{name}": values for name, values in head.items()}
    save_file(together, tmp_path / "clip" / "both.safetensors")
    (tmp_path / "clip" / "model.safetensors").unlink()
    both = Aesthetic(AestheticSettings(name="aesthetic", weights=str(tmp_path / "clip"))).open_reader()
    np.testing.assert_array_equal(both.read(PICTURES, PROMPTS), reader.read(PICTURES, PROMPTS))


VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 32,
}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 12,
    "encoder_hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
    "bos_token_id": 2,
    "sep_token_id": 3,
}


def reward_tensors() -> dict[str, Tensor]:
    """Random weights under ImageReward's names."""
    found: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, 16),
        "blip.visual_encoder.pos_embed": (1, 5, 16),
        "blip.visual_encoder.patch_embed.proj.weight": (16, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (16,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (40, 12),
        "blip.text_encoder.embeddings.position_embeddings.weight": (64, 12),
        "blip.vision_proj.weight": (4, 16),
        "blip.text_proj.bias": (4,),
    }

    def layer(name: str, made: int, given: int | None = None) -> None:
        found.update({f"{name}.weight": (made,) if given is None else (made, given), f"{name}.bias": (made,)})

    layer("blip.visual_encoder.norm", 16)
    layer("blip.text_encoder.embeddings.LayerNorm", 12)
    for number in range(2):
        seeing, reading = f"blip.visual_encoder.blocks.{number}.", f"blip.text_encoder.encoder.layer.{number}."
        layer(f"{seeing}norm1", 16)
        layer(f"{seeing}norm2", 16)
        layer(f"{seeing}attn.qkv", 48, 16)
        layer(f"{seeing}attn.proj", 16, 16)
        layer(f"{seeing}mlp.fc1", 32, 16)
        layer(f"{seeing}mlp.fc2", 16, 32)
        for kind, width in (("attention", 12), ("crossattention", 16)):
            layer(f"{reading}{kind}.self.query", 12, 12)
            layer(f"{reading}{kind}.self.key", 12, width)
            layer(f"{reading}{kind}.self.value", 12, width)
            layer(f"{reading}{kind}.output.dense", 12, 12)
            layer(f"{reading}{kind}.output.LayerNorm", 12)
        layer(f"{reading}intermediate.dense", 24, 12)
        layer(f"{reading}output.dense", 12, 24)
        layer(f"{reading}output.LayerNorm", 12)
    for name, made, given in zip("02467", (1024, 128, 64, 16, 1), (12, 1024, 128, 64, 16), strict=True):
        layer(f"mlp.layers.{name}", made, given)
    generator = torch.Generator().manual_seed(4)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in found.items()}


def reward(tensors: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward as its authors compute it: BERT with cross-attention to all tokens of a ViT, then linear layers."""
    vit, bert = "blip.visual_encoder.", "blip.text_encoder."
    seen = functional.conv2d(pixels, tensors[f"{vit}patch_embed.proj.weight"], tensors[f"{vit}patch_embed.proj.bias"], stride=16)
    seen = torch.cat((tensors[f"{vit}cls_token"].expand(len(pixels), -1, -1), seen.flatten(2).transpose(1, 2)), 1)
    seen = seen + tensors[f"{vit}pos_embed"]
    for number in range(2):
        name = f"{vit}blocks.{number}."
        inside = norm(seen, tensors, f"{name}norm1", 1e-6)
        seen = seen + attention(inside, inside, joined(tensors, f"{name}attn.qkv.", f"{name}attn.proj"), 2)
        inside = functional.gelu(linear(norm(seen, tensors, f"{name}norm2", 1e-6), tensors, f"{name}mlp.fc1"))
        seen = seen + linear(inside, tensors, f"{name}mlp.fc2")
    seen = norm(seen, tensors, f"{vit}norm", 1e-6)
    read = tensors[f"{bert}embeddings.word_embeddings.weight"][ids]
    read = read + tensors[f"{bert}embeddings.position_embeddings.weight"][: ids.shape[1]]
    read = norm(read, tensors, f"{bert}embeddings.LayerNorm", 1e-12)
    hidden = torch.where(mask[:, None, None, :] == 1, 0.0, -torch.inf)
    for number in range(2):
        for kind, context, left_out in (("attention", None, hidden), ("crossattention", seen, None)):
            name = f"{bert}encoder.layer.{number}.{kind}."
            layers = (f"{name}self.query", f"{name}self.key", f"{name}self.value", f"{name}output.dense")
            parts = tuple(tensors[f"{layer}.{end}"] for layer in layers for end in ("weight", "bias"))
            found = attention(read, read if context is None else context, parts, 3, left_out)
            read = norm(found + read, tensors, f"{name}output.LayerNorm", 1e-12)
        name = f"{bert}encoder.layer.{number}."
        inside = linear(functional.gelu(linear(read, tensors, f"{name}intermediate.dense")), tensors, f"{name}output.dense")
        read = norm(inside + read, tensors, f"{name}output.LayerNorm", 1e-12)
    raw = read[:, 0]
    for name in "02467":
        raw = linear(raw, tensors, f"mlp.layers.{name}")
    return (raw - MEAN) / DEVIATION


def test_imagereward_is_what_its_authors_compute(tmp_path: Path) -> None:
    tensors = reward_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": VISION | {"layer_norm_eps": 1e-6}, "text_config": TEXT}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "green", "circle", "square", "star", "on", "grey"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    reader = ImageReward(ImageRewardSettings(name="imagereward", weights=str(tmp_path))).open_reader()
    assert isinstance(reader, BlipReader) and reader.side == 32
    tokens = reader.tokens(PROMPTS)
    assert tokens["input_ids"].shape == (4, LONGEST) and tokens["input_ids"][0, :6].tolist() == [2, 5, 6, 9, 3, 0]
    expected = reward(tensors, reader.pixels(PICTURES), tokens["input_ids"], tokens["attention_mask"])
    np.testing.assert_allclose(reader.read(PICTURES, PROMPTS), expected.numpy(), rtol=2e-3, atol=1e-4)
    assert np.ptp(reader.read(PICTURES, PROMPTS)) > 1e-3


def test_inception_has_the_published_layers_and_averages_without_the_border(tmp_path: Path) -> None:
    weights = inception_weights(tmp_path / "inception.safetensors")
    reader = FID(FIDSettings(name="fid", weights=str(tmp_path / "inception.safetensors"))).open_reader()
    assert sum(values.numel() for values in reader.parameters()) == 21_785_568  # as published, without the classifier
    shapes = {name: tuple(values.shape) for name, values in reader.state_dict().items()}
    assert shapes["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Conv2d_3b_1x1.bn.running_var"] == (80,)
    rows = reader.read(PICTURES[:2], PROMPTS[:2])
    assert rows.shape == (2, 2048) and reader.pixels(PICTURES[:1]).shape == (1, 3, 299, 299)
    with torch.inference_mode():
        np.testing.assert_array_equal(rows, weights(reader.pixels(PICTURES[:2])).numpy())
    block = weights.Mixed_5b
    constant = torch.ones(1, 192, 5, 5)
    with torch.no_grad():
        pooled, plain = block(constant)[:, -32:], block.branch_pool(constant)
    torch.testing.assert_close(pooled, plain)  # the average of a constant is the constant, at the border too


def test_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    def reason(weights: str) -> str:
        with pytest.raises(NotScored) as caught:
            ClipScore(ClipSettings(name="clip", weights=weights)).open_reader()
        return str(caught.value)

    assert reason("./nowhere/at all") == (
        "there are no weights at './nowhere/at all'; give a folder, a file of safetensors or a hub id with `weights`"
    )
    assert "holds no safetensors; name the folder or the file that does" in reason(str(tmp_path))
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"pickle")
    assert "pickles such as HPS_v2.1_compressed.pt can run code and are not read, so convert it once" in reason(str(tmp_path))
    assert "are not safetensors; pickles such as" in reason(str(tmp_path / "HPS_v2.1_compressed.pt"))
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert "does not fit the scorer's model: logit_scale is missing and" in reason(str(tmp_path))
    save_file({"heads.0.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert "has 'heads.0.weight', which no CLIP has" in reason(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert "cannot be read as safetensors" in reason(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert "holds a.safetensors, b.safetensors; name one of these files" in reason(str(tmp_path))
    with pytest.raises(NotScored, match="nobody publishes its weights as safetensors; convert them once"):
        find_weights(FIDSettings(name="fid"))


def test_a_hub_that_cannot_be_reached_is_a_sentence_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotScored, match=r"some/model cannot be had from the hub \(.+\); bring its files to this machine"):
        find_weights(ClipSettings(name="clip", weights="some/model"), download=False)
