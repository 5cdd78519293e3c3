"""Small pipelines of the real architectures, built from configs: the embedded domain's base and the tests' models.

Nothing here is a stand-in: the classes are diffusers' and transformers' own, only the widths differ, so whatever loads, trains,
saves and exports these does the same with the weights that people download.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

END = "<|endoftext|>"
START = "<|startoftext|>"


def clip_tokenizer(corpus: Iterable[str], max_length: int, vocabulary_size: int = 1200) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer trained on a corpus; its words become single tokens, any other text still has tokens."""
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
    # CLIP splits at white space before the byte level; the trainer must see words without the leading blank.
    tokenizer.train_from_iterator((word for text in corpus for word in text.replace(",", " ,").split()), trainer)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = tokenizer.model.save(folder)
        del vocabulary_file
        merges = [tuple(line.split(" ")) for line in Path(merges_file).read_text().splitlines()[1:]]
    vocabulary = tokenizer.get_vocab()
    for letter in alphabet:  # a letter that ends an unknown word needs its own token
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    built = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
    if len(built) != len(vocabulary):
        raise AssertionError(f"the tokenizer kept {len(built)} of {len(vocabulary)} tokens")
    return built


def t5_tokenizer(corpus: Iterable[str], max_length: int = 512) -> T5Tokenizer:
    """A T5 unigram tokenizer over the words of a corpus; other words fall into their letters."""
    words = sorted({word for text in corpus for word in text.lower().split()})
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz,"))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -5.0) for word in words if len(word) > 1] + [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, *, projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder of the given width over a tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def tiny_vae(channels: tuple[int, ...] = (16, 32, 64), latent_channels: int = 8, **latent_space: float) -> AutoencoderKL:
    """An autoencoder of down-sampling factor 2 ** (len(channels) - 1); `latent_space` has its scaling_factor and shift_factor."""
    return AutoencoderKL(
        **latent_space,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=min(8, channels[0] // 2),
        mid_block_add_attention=False,
        sample_size=64,
    )


def tiny_sdxl(
    corpus: Iterable[str],
    *,
    max_length: int = 48,
    text_width: int = 64,
    channels: tuple[int, ...] = (64, 128),
    vae_channels: tuple[int, ...] = (16, 32, 64),
    latent_channels: int = 8,
    sample_size: int = 16,
    prediction_type: str = "v_prediction",
) -> StableDiffusionXLPipeline:
    """A randomly initialised `StableDiffusionXLPipeline`: UNet, two CLIP encoders with tokenizers, VAE, scheduler.

    `sample_size` is the latent's height and width; the picture is `2 ** (len(vae_channels) - 1)` times larger.
    """
    tokenizer = clip_tokenizer(corpus, max_length)
    time_width = 32
    zero_terminal_snr = prediction_type == "v_prediction"  # an ε model cannot start from pure noise
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        transformer_layers_per_block=1,
        attention_head_dim=tuple(max(1, c // 32) for c in channels),  # diffusers' name; it holds the number of heads
        cross_attention_dim=2 * text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=text_width + 6 * time_width,
        norm_num_groups=min(16, channels[0] // 2),
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(vae_channels, latent_channels),
        text_encoder=text_encoder(tokenizer, text_width, 2, projection=False),
        text_encoder_2=text_encoder(tokenizer, text_width, 2, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def tiny_flux(
    corpus: Iterable[str],
    *,
    max_length: int = 48,
    text_width: int = 32,
    heads: int = 2,
    layers: int = 1,
    single_layers: int = 2,
    vae_channels: tuple[int, ...] = (8, 16, 16),
    latent_channels: int = 8,
    guidance_embeds: bool = True,
) -> FluxPipeline:
    """A randomly initialised `FluxPipeline`: transformer, CLIP and T5 encoders with tokenizers, VAE, scheduler.

    `guidance_embeds` as in FLUX.1-dev; without them it is like FLUX.1-schnell.
    """
    corpus = list(corpus)
    tokenizer, tokenizer_2 = clip_tokenizer(corpus, max_length), t5_tokenizer(corpus)
    transformer = FluxTransformer2DModel(
        in_channels=4 * latent_channels,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=text_width,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=text_width,
        d_kv=text_width // 4,
        d_ff=2 * text_width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer_2.pad_token_id,
        eos_token_id=tokenizer_2.eos_token_id,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(vae_channels, latent_channels, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text_encoder(tokenizer, text_width, 2, projection=False),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )
