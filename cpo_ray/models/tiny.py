"""Small bases of the real architectures, for the embedded domain and the tests.

Nothing here is a stand-in: the classes are diffusers' and transformers' own, and only the widths differ. Whatever loads, trains,
saves and exports these does the same with the weights that people download.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5Tokenizer

END = "<|endoftext|>"
START = "<|startoftext|>"


def clip_tokenizer(corpus: Sequence[str], max_length: int = 77, vocabulary_size: int = 1200) -> CLIPTokenizer:
    """Train a CLIP byte-pair tokenizer on a corpus. Its words become single tokens, and any other text still has tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # CLIP splits at white space before the byte level, so the trainer must see words without the leading blank.
    tokenizer.train_from_iterator((word for text in corpus for word in text.replace(",", " ,").split()), trainer)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = tokenizer.model.save(folder)
        del vocabulary_file
        merges = [tuple(line.split(" ")) for line in Path(merges_file).read_text(encoding="utf-8").splitlines()[1:]]
    vocabulary = tokenizer.get_vocab()
    for letter in alphabet:  # a letter that ends an unknown word needs its own token
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    built = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
    if len(built) != len(vocabulary):
        raise AssertionError(f"the tokenizer kept {len(built)} of {len(vocabulary)} tokens")
    return built


def t5_tokenizer(corpus: Sequence[str], max_length: int = 512) -> T5Tokenizer:
    """Build a T5 unigram tokenizer over the words of a corpus. Other words split into letters."""
    words = sorted({word for text in corpus for word in text.lower().split()})
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz,"))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -5.0) for word in words if len(word) > 1] + [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


@dataclass(frozen=True)
class Widths:
    """The widths of a small base of any architecture.

    `denoiser` has the channels of a UNet's levels; a transformer has the first of them throughout. `text` is the width of every
    text encoder, `text_tokens` the length of CLIP's texts. A VAE with k channels in `vae` makes pictures 2^(k - 1) times smaller.
    """

    denoiser: tuple[int, ...] = (32, 64)
    text: int = 32
    text_tokens: int = 48
    vae: tuple[int, ...] = (8, 16, 16)
    latent: int = 8


def tiny_vae(widths: Widths) -> dict[str, Any]:
    """Return the configuration of a small AutoencoderKL."""
    return {
        "block_out_channels": widths.vae,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths.vae),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths.vae),
        "layers_per_block": 1,
        "latent_channels": widths.latent,
        "norm_num_groups": min(8, widths.vae[0] // 2),
        "mid_block_add_attention": False,
        "sample_size": 64,
    }


def tiny_clip(widths: Widths) -> dict[str, Any]:
    """Return the configuration of a small CLIP text encoder."""
    return {
        "hidden_size": widths.text,
        "intermediate_size": widths.text * 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": widths.text_tokens,
        "projection_dim": widths.text,
    }


def tiny_t5(widths: Widths) -> dict[str, Any]:
    """Return the configuration of a small T5 encoder."""
    return {
        "d_model": widths.text,
        "d_kv": widths.text // 4,
        "d_ff": 2 * widths.text,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }


def tokenizer_for(kind: Any, configuration: Mapping[str, Any], corpus: Sequence[str]) -> CLIPTokenizer | T5Tokenizer:
    """Return a tokenizer for a class of text encoder in transformers. Raises TypeError for a class that nothing here knows."""
    if issubclass(kind.config_class, CLIPTextConfig):
        return clip_tokenizer(corpus, configuration.get("max_position_embeddings", 77))
    if issubclass(kind.config_class, T5Config):
        return t5_tokenizer(corpus)
    raise TypeError(f"there is no tokenizer for {kind.__name__}; the family must build its random pipeline itself")


def random_text_encoder(kind: Any, configuration: Mapping[str, Any], tokenizer: CLIPTokenizer | T5Tokenizer) -> Any:
    """Return a text encoder of a class in transformers with random weights and the vocabulary of the tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {name: number for name, number in ids.items() if number is not None}  # T5 has no start token
    return kind(kind.config_class(**{**configuration, "vocab_size": len(tokenizer), **known}))
