"""GenEval's own detector weights, named as `transformers` names them.

GenEval scores with Mask2Former (Swin-S, COCO instances) as published for mmdetection 2.x:
`mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth` of download.openmmlab.com. The network is
`transformers.Mask2FormerForUniversalSegmentation` under other names; three things are more than a name:

1. queries, keys and values come stacked in one matrix, here they are three (but for the decoder's cross attention);
2. where Swin merges 2 x 2 patches, mmdetection lists the four channel by channel as `nn.Unfold` does, transformers
   patch by patch and column by column;
3. tables of relative positions are computed here, not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import torch
from transformers import Mask2FormerConfig, SwinConfig

from .errors import CorruptError
from .prompts import CLASSES

ENCODER, DECODER = "model.pixel_level_module.encoder.", "model.pixel_level_module.decoder."
TRANSFORMER = "model.transformer_module."
SWIN = f"{ENCODER}swin.encoder.layers.#."
LAYER = f"{TRANSFORMER}decoder.layers.#."

# Beginnings of names: theirs, ours. "#" is a number, the same on both sides; {} is each of q, k and v in turn.
RENAMES = (
    ("backbone.patch_embed.projection.", f"{ENCODER}swin.embeddings.patch_embeddings.projection."),
    ("backbone.patch_embed.norm.", f"{ENCODER}swin.embeddings.norm."),
    ("backbone.stages.#.blocks.#.norm1.", f"{SWIN}blocks.#.layernorm_before."),
    ("backbone.stages.#.blocks.#.norm2.", f"{SWIN}blocks.#.layernorm_after."),
    ("backbone.stages.#.blocks.#.attn.w_msa.qkv.", f"{SWIN}blocks.#.attention.{{}}_proj."),
    ("backbone.stages.#.blocks.#.attn.w_msa.proj.", f"{SWIN}blocks.#.attention.o_proj."),
    (
        "backbone.stages.#.blocks.#.attn.w_msa.relative_position_bias_table",
        f"{SWIN}blocks.#.attention.relative_position_bias.relative_position_bias_table",
    ),
    ("backbone.stages.#.blocks.#.ffn.layers.0.0.", f"{SWIN}blocks.#.mlp.fc1."),
    ("backbone.stages.#.blocks.#.ffn.layers.1.", f"{SWIN}blocks.#.mlp.fc2."),
    ("backbone.stages.#.downsample.", f"{SWIN}downsample."),
    *((f"backbone.norm{i}.", f"{ENCODER}hidden_states_norms.stage{i + 1}.") for i in range(4)),
    ("panoptic_head.pixel_decoder.input_convs.#.conv.", f"{DECODER}input_projections.#.0."),
    ("panoptic_head.pixel_decoder.input_convs.#.gn.", f"{DECODER}input_projections.#.1."),
    ("panoptic_head.pixel_decoder.encoder.layers.#.attentions.0.", f"{DECODER}encoder.layers.#.self_attn."),
    ("panoptic_head.pixel_decoder.encoder.layers.#.norms.0.", f"{DECODER}encoder.layers.#.self_attn_layer_norm."),
    ("panoptic_head.pixel_decoder.encoder.layers.#.ffns.0.layers.0.0.", f"{DECODER}encoder.layers.#.fc1."),
    ("panoptic_head.pixel_decoder.encoder.layers.#.ffns.0.layers.1.", f"{DECODER}encoder.layers.#.fc2."),
    ("panoptic_head.pixel_decoder.encoder.layers.#.norms.1.", f"{DECODER}encoder.layers.#.final_layer_norm."),
    ("panoptic_head.pixel_decoder.level_encoding.weight", f"{DECODER}level_embed"),
    ("panoptic_head.pixel_decoder.lateral_convs.0.conv.", f"{DECODER}adapter_1.0."),
    ("panoptic_head.pixel_decoder.lateral_convs.0.gn.", f"{DECODER}adapter_1.1."),
    ("panoptic_head.pixel_decoder.output_convs.0.conv.", f"{DECODER}layer_1.0."),
    ("panoptic_head.pixel_decoder.output_convs.0.gn.", f"{DECODER}layer_1.1."),
    ("panoptic_head.pixel_decoder.mask_feature.", f"{DECODER}mask_projection."),
    ("panoptic_head.transformer_decoder.layers.#.attentions.0.attn.", f"{LAYER}cross_attn."),
    ("panoptic_head.transformer_decoder.layers.#.norms.0.", f"{LAYER}cross_attn_layer_norm."),
    ("panoptic_head.transformer_decoder.layers.#.attentions.1.attn.in_proj_", f"{LAYER}self_attn.{{}}_proj."),
    ("panoptic_head.transformer_decoder.layers.#.attentions.1.attn.out_proj.", f"{LAYER}self_attn.out_proj."),
    ("panoptic_head.transformer_decoder.layers.#.norms.1.", f"{LAYER}self_attn_layer_norm."),
    ("panoptic_head.transformer_decoder.layers.#.ffns.0.layers.0.0.", f"{LAYER}fc1."),
    ("panoptic_head.transformer_decoder.layers.#.ffns.0.layers.1.", f"{LAYER}fc2."),
    ("panoptic_head.transformer_decoder.layers.#.norms.2.", f"{LAYER}final_layer_norm."),
    ("panoptic_head.transformer_decoder.post_norm.", f"{TRANSFORMER}decoder.layernorm."),
    ("panoptic_head.query_embed.", f"{TRANSFORMER}queries_embedder."),
    ("panoptic_head.query_feat.", f"{TRANSFORMER}queries_features."),
    ("panoptic_head.level_embed.", f"{TRANSFORMER}level_embed."),
    ("panoptic_head.cls_embed.", "class_predictor."),
    *(
        (f"panoptic_head.mask_embed.{2 * i}.", f"{TRANSFORMER}decoder.mask_predictor.mask_embedder.{i}.0.")
        for i in range(3)
    ),
)
COMPUTED = "relative_position_index"  # the end of a name
UNUSED = (  # ours that a detector never reads: missing in every published file or harmless where it is
    f"{ENCODER}swin.layernorm.weight",
    f"{ENCODER}swin.layernorm.bias",
    "criterion.empty_weight",
)


def official_config() -> Mask2FormerConfig:
    """The published architecture: Swin-S with windows of 7, 100 queries, the 80 classes in GenEval's words."""
    swin = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(backbone_config=swin, num_queries=100, id2label=dict(enumerate(CLASSES)))


def is_official(names: Mapping[str, object] | set[str]) -> bool:
    """Whether these are the names of an mmdetection file rather than of a `transformers` one."""
    return any(name.startswith(("backbone.", "panoptic_head.")) for name in names)


def convert(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """mmdetection 2.x weights by name -> the same for `Mask2FormerForUniversalSegmentation`.

    Raises CorruptError for names that the published file does not hold.
    """
    converted: dict[str, torch.Tensor] = {}
    strangers = []
    for name, tensor in weights.items():
        if name.endswith(COMPUTED):
            continue
        ours = _rename(name)
        if ours is None:
            strangers.append(name)
        elif "{}" in ours:
            converted |= {ours.format(part): piece.clone() for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            converted[ours] = by_patch(tensor) if ".downsample." in name else tensor
    if strangers:
        raise CorruptError(
            f"{len(strangers)} of {len(weights)} weights are none of mmdetection 2.x's Mask2Former, the first "
            f"{strangers[0]!r}; expected the file that GenEval downloads, mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
            "_20220504_001756-743b7d99.pth of mmdetection/v2.0 (the v3.0 file does not fit)"
        )
    return converted


def by_patch(tensor: torch.Tensor) -> torch.Tensor:
    """Last axis from (channel, row, column), as `nn.Unfold` lists a 2 x 2 patch, to (column, row, channel)."""
    apart = tensor.unflatten(-1, (-1, 2, 2))  # [..., C, row, column]
    return apart.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)


def _rename(name: str) -> str | None:
    for pattern, ours in _patterns():
        if match := pattern.match(name):
            for number in match.groups():
                ours = ours.replace("#", number, 1)
            return ours + name[match.end() :]
    return None


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(re.escape(theirs).replace(r"\#", r"(\d+)")), ours) for theirs, ours in RENAMES)
