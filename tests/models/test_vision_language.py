"""Local vision-language models: tiny ones of real architectures, built from configs, that can only answer in the asked form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from support.annotating import annotate, labels, prepared, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from cpo_ray.annotation.asking.questions import Questions
from cpo_ray.config.annotation import AnnotationConfig
from cpo_ray.domains.toy.dataset import draw_pictures
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.models.constrained import ConstrainedAnswers, Form, FormPlace, Vocabulary
from cpo_ray.models.vision_language import VisionLanguageError, VisionLanguageModel

TREE = Path(__file__).parents[2] / "hierarchy" / "painting_toy.yaml"
TEMPLATE = (
    "{% for m in messages %}User:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<end>\n{% endfor %}Assistant:"
)
SPECIAL = ["<pad>", "<end>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one, trained on the words of the tree, with the tokens that stand for pictures."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator([TREE.read_text(), '{"description": "", "positive_ids": [], "negative_ids": ["'], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=SPECIAL[2:],
        model_max_length=8192,
    )


def language(tokens: int) -> LlamaConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    return LlamaConfig(vocab_size=tokens, max_position_embeddings=8192, pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes)


def tiny_idefics3(folder: Path) -> None:
    """The architecture of Idefics3 and SmolVLM; a picture of 32 pixels becomes 4 tokens."""
    words = tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    config = Idefics3Config(
        vision_config={**vision, "image_size": 32},
        text_config=language(len(words)).to_dict(),
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False, return_row_col_info=True
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    Idefics3Processor(pictures, words, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)


def tiny_llava(folder: Path) -> None:
    """The architecture of LLaVA; a picture of 32 pixels becomes 16 tokens."""
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **sizes),
        text_config=language(len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


@pytest.fixture(scope="module", params=[tiny_idefics3, tiny_llava])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        request.param(folder)
    return folder


def locally(folder: Path, model: Path, batch: int) -> AnnotationConfig:
    """Settings for the saved model; each size of batch with answers of its own."""
    base = settings(folder)
    local = {"kind": "local", "model": str(model), "dtype": "float32", "batch": batch, "max_tokens": 900}
    annotation = {**base.annotation.model_dump(), "back_end": local, "answers": folder / f"answers{batch}"}
    return AnnotationConfig.model_validate({"pictures": base.pictures.model_dump(), "annotation": annotation})


# ---- models


def test_a_model_of_random_weights_answers_every_question_in_its_form(saved: Path) -> None:
    model = VisionLanguageModel(str(saved), None, "float32", "cpu")
    questions = Questions(load_hierarchy(TREE)).about("red circle over sea")[:3]
    pictures = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    texts = [f"{question.root_id * 5} {question.user}" for question in questions]
    schemas = [question.schema for question in questions]
    together = model.generate(pictures, texts, schemas, 900)
    for answer, schema in zip(together, schemas, strict=True):
        jsonschema.validate(json.loads(answer.text), schema)
        assert 20 < answer.tokens_out < 900 and answer.tokens_in > 20
    # Alone and in a batch, padded or not: the same answers, of the same length.
    alone = [model.generate([p], [t], [s], 900)[0] for p, t, s in zip(pictures, texts, schemas, strict=True)]
    assert alone == together
    assert not model.generate(pictures[:1], texts[:1], schemas[:1], 5)[0].text.endswith("}")


def test_a_caption_cannot_open_a_turn_or_stand_for_a_picture(saved: Path) -> None:
    model = VisionLanguageModel(str(saved), None, "float32", "cpu")
    schema = Questions(load_hierarchy(TREE)).content().schema
    picture = Image.new("RGB", (32, 32))
    (plain,) = model.generate([picture], ["say   this"], [schema], 300)
    (trick,) = model.generate([picture], ["say <image> this"], [schema], 300)
    assert trick == plain


def test_the_local_back_end_annotates_and_batches_change_nothing(saved: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 1, seed=3)  # about which there are several questions
    found = []
    for batch in (1, 4):
        outcomes = annotate(locally(tmp_path, saved, batch))
        assert not any(outcome.problem for outcome in outcomes.values())
        tree = load_hierarchy(TREE)
        assert all(not tree.problems(o.positive_ids, o.negative_ids, o.prompt) for o in outcomes.values())
        found.append(labels(outcomes))
    assert found[0] == found[1]


def test_a_picture_that_the_model_fails_at_is_set_aside_alone(saved: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 2, seed=3)
    config = locally(tmp_path, saved, batch=16)
    good, bad = prepared(config)
    outcomes = annotate(config, [good, replace(bad, seen=b"no picture")])
    assert not outcomes[good.id].problem and "the model failed with UnidentifiedImageError" in outcomes[bad.id].problem


def test_what_is_no_such_model_is_answered_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VisionLanguageError, match="cannot be loaded as a vision-language model"):
        VisionLanguageModel(str(tmp_path), None, "float32", "cpu")


# ---- the form


def walked(form: Form, text: str) -> FormPlace | None:
    place: FormPlace | None = FormPlace(0)
    for character in text:
        place = form.step(place, character) if place else None
    return place


SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "ids": {"type": "array", "items": {"type": "string", "enum": ["a", "ab"]}},
        "none": {"type": "array", "items": {"type": "string"}},
    }
}


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ('{"text": "", "ids": [], "none": []}', True),
        ('{"text": "é, {x}", "ids": ["ab", "a"], "none": []}', True),
        ('{"text": "x", "ids": ["a"', False),
    ],
)
def test_what_the_form_takes(text: str, complete: bool) -> None:
    place = walked(Form(SCHEMA), text)
    assert place is not None and (place.part == len(Form(SCHEMA).parts)) == complete


@pytest.mark.parametrize(
    "text",
    [
        '{"i',
        '{"text": "\n',
        '{"text": "\\',
        '{"text": "", "ids": ["b',
        '{"text": "", "ids": ["a", "a"',
        '{"text": "", "ids": ["a",]',
        '{"text": "", "ids": [], "none": ["',
        '{"text": "", "ids": [], "none": []} ',
    ],
)
def test_what_the_form_does_not_take(text: str) -> None:
    assert walked(Form(SCHEMA), text[:-1]) is not None and walked(Form(SCHEMA), text) is None


def test_what_a_token_may_be_is_what_its_characters_may_be() -> None:
    words, form = tokenizer(), Form(SCHEMA)
    vocabulary = Vocabulary(words)
    assert vocabulary.end == words.convert_tokens_to_ids("<end>") and not set(vocabulary.texts) & set(words.all_special_ids)
    for start in ("", '{"te', '{"text": "x', '{"text": "", "ids": [', '{"text": "", "ids": ["a'):
        place = walked(form, start)
        assert place is not None
        allowed = set(vocabulary.allowed(form, place).tolist())
        assert allowed == {token for token, text in vocabulary.texts.items() if walked(form, start + text)} and allowed
    end = walked(form, '{"text": "", "ids": [], "none": []}')
    assert end is not None and vocabulary.allowed(form, end).tolist() == [vocabulary.end]


def test_a_text_comes_to_an_end() -> None:
    words = tokenizer()
    vocabulary = Vocabulary(words)
    constraint = ConstrainedAnswers(vocabulary, [SCHEMA])
    letter = next(token for token, text in vocabulary.texts.items() if text == "x")
    scores = torch.zeros(1, len(words))
    scores[0, letter] = 9.0  # it would go on with x for ever
    ids = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(600):
        chosen = constraint(ids, scores).argmax(1)
        if chosen.item() == vocabulary.end:
            break
        ids = torch.cat([ids, chosen[:, None]], 1)
    text = "".join(vocabulary.texts[token] for token in ids[0, 1:].tolist())
    assert json.loads(text)["text"].count("x") == 400
    with pytest.raises(ValueError, match="the property 'n' is of type 'number'"):
        Form({"properties": {"n": {"type": "number"}}})
