"""The formats that cross a process or a disk: the Arrow schema of annotated pictures and the tensors of a target shard.

No torch, no Ray. Both formats are readable without this package (Parquet, safetensors) and hold no code.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 2

#: One annotated picture.  For example: id "red-circle-on-grey-wall-00017", image b"\x89PNG…", prompt "red circle on grey wall",
#: positive_ids ["edge.clarity"], negative_ids ["color.palette"].
ANNOTATED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # unique in the data set; noise, dropout and mostly the split depend on it
        pa.field("image", pa.binary(), nullable=False),  # the unchanged image file (PNG, JPEG, WebP …)
        pa.field("prompt", pa.string(), nullable=False),  # content prompt y: what the picture shows, without its quality
        pa.field("positive_ids", pa.list_(pa.string()), nullable=False),  # attribute ids in hierarchy order
        pa.field("negative_ids", pa.list_(pa.string()), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # pixels of the decoded image, after its EXIF rotation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),  # who annotated it: file, back end, model
        pa.field("hierarchy_hash", pa.string(), nullable=False),  # content hash of the tree that the ids refer to
        pa.field("split", pa.string()),  # where its source has a split: "train", "validation" or "test"; older shards have none
    ]
)

#: One row that was set aside, and the reason.
QUARANTINE = pa.schema([pa.field("source", pa.string()), pa.field("id", pa.string()), pa.field("reason", pa.string())])

#: The tensors of a target shard (safetensors), B samples of one bucket, U distinct prompts, latents (C, h, w) in the VAE's
#: scaled space.
#: Predictions are in the model's own space (noise or velocity).  Conditioning tensors carry the family's names.
TARGET_TENSORS = {
    "x_t": "(B, C, h, w) float16: the noisy latent, rounded before any model saw it",
    "timestep": "(B,) int64 step of a discrete process or float32 time of a flow",
    "prompt_index": "(B,) int64: row of the text.* tensors",
    # In families whose texts differ in length (FLUX), rows of zeros at the end of a sequence are padding, not tokens.
    "text.*": "(U, …) float16: encoded conditions, each distinct one once, rounded before any model saw it",
    "micro.*": "(B, …) float32: per-sample conditioning such as SDXL's sizes and crop",
    "target": "(B, C, h, w) float16: ground truth of the denoising loss; present where a supervised objective asks for it",
    "reference": "(B, C, h, w) float32: frozen base model given y",
    "null_minus_reference": "(B, C, h, w) float16: θ1(∅) - reference",
    "negative_minus_null": "(B, C, h, w) float16: θ1(A_neg) - θ1(∅)",
    "positive_minus_null": "(B, C, h, w) float16: θ1(y, A_pos) - θ1(∅)",
    "positive_minus_all": "(B, C, h, w) float16: θ1(y, A_pos) - θ1(y, A_pos, A_neg)",
}

#: A sample may be a pair of pictures. The second one's x_t, target, micro.* and reference have the second of these before their
#: names; its timestep and text are those of the first.
PICTURE_PREFIXES = ("", "picture1.")


def target_row_bytes(latent: int, text: int) -> int:
    """Return the bytes of one sample of expert targets: a latent of C·h·w numbers, and a prompt with `text` numbers of
    conditions.

    The few bytes of timestep, index and per-sample conditioning are not counted.
    """
    per_value = sum(2 if "float16" in kind else 4 for kind in TARGET_TENSORS.values() if kind.startswith("(B, C, h, w)"))
    return latent * per_value + 2 * text
