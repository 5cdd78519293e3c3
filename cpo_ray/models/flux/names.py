"""Where the layers of diffusers' transformer lie in FLUX.1's original code, whose names kohya's scripts and ComfyUI use."""

from __future__ import annotations

from typing import Any

from cpo_ray.models.adapters.formats import LayerPlace


def original_place(_: Any, module: str) -> LayerPlace:
    """Return the original layer, and all layers that it is cut into. Raises KeyError for one without a place."""
    stack, _, rest = module.partition(".")
    number, _, layer = rest.partition(".")
    original, path, parts = _PLACES[stack, layer]
    return LayerPlace(f"{original}.{number}.{path}", tuple(f"{stack}.{number}.{part}" for part in parts))


#: Layers of one block in the original code, and what they are in diffusers.
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_PLACES = {
    (stack, part): (original, path, parts)
    for stack, original, places in (
        ("transformer_blocks", "double_blocks", _DOUBLE),
        ("single_transformer_blocks", "single_blocks", _SINGLE),
    )
    for path, parts in places.items()
    for part in parts
}
