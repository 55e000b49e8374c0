"""Weight names in the layout of diffusers and transformers; `diffusers_configs` handles the config.json files.

Covers a spatial UNet, a MotionAdapter, an AutoencoderKL and a CLIPTextModel, as saved by these libraries.
"""

from weights_converters.keymap import Rule

POSITIONS = "position tables, which are sinusoids and recomputed"

MARKERS = [Rule(r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\..*", None, why="markers of the UNet's training objective")]
"""Rules for tensors whose presence is a marker; see `base_settings`."""

UNET = [*MARKERS, Rule(r"(.*)", r"\1")]
"""Rules for a UNet2DConditionModel, whose names are the same as ours."""

_MODULE = r"(.*)\.motion_modules\.(\d+)\."
_BLOCK = _MODULE + r"transformer_blocks\.(\d+)\."
_OUR_BLOCK = r"\1.temporals.\2.transformer_blocks.\3."

MOTION = [
    Rule(_BLOCK + r"pos_embed\.pe", None, why=POSITIONS),
    Rule(_BLOCK + r"attn1\.(.*)", _OUR_BLOCK + r"attention_blocks.0.\4"),
    Rule(_BLOCK + r"attn2\.(.*)", _OUR_BLOCK + r"attention_blocks.1.\4"),
    Rule(_BLOCK + r"norm1\.(.*)", _OUR_BLOCK + r"norms.0.\4"),
    Rule(_BLOCK + r"norm2\.(.*)", _OUR_BLOCK + r"norms.1.\4"),
    Rule(_BLOCK + r"norm3\.(.*)", _OUR_BLOCK + r"ff_norm.\4"),
    Rule(_MODULE + r"(.*)", r"\1.temporals.\2.\3"),
]
"""Rules for a MotionAdapter."""

VAE = [
    Rule(r"(.*\.attentions\.0\.)query\.(.*)", r"\1to_q.\2"),
    Rule(r"(.*\.attentions\.0\.)key\.(.*)", r"\1to_k.\2"),
    Rule(r"(.*\.attentions\.0\.)value\.(.*)", r"\1to_v.\2"),
    Rule(r"(.*\.attentions\.0\.)proj_attn\.(.*)", r"\1to_out.0.\2"),
    Rule(r"(.*)", r"\1"),
]
"""Rules for an AutoencoderKL, with current attention names or those before diffusers 0.15."""

_LAYER = r"(?:text_model\.)?encoder\.layers\.(\d+)\."
_OUR_LAYER = r"transformer.resblocks.\1."

TEXT = [
    Rule(r"(?:text_model\.)?embeddings\.position_ids", None, why="position ids, which are 0, 1, 2, ..."),
    Rule(r"(?:text_model\.)?embeddings\.token_embedding\.weight", "token_embedding.weight"),
    Rule(r"(?:text_model\.)?embeddings\.position_embedding\.weight", "positional_embedding"),
    Rule(_LAYER + r"self_attn\.q_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=0),
    Rule(_LAYER + r"self_attn\.k_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=1),
    Rule(_LAYER + r"self_attn\.v_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=2),
    Rule(_LAYER + r"self_attn\.out_proj\.(weight|bias)", _OUR_LAYER + r"attn.out_proj.\2"),
    Rule(_LAYER + r"layer_norm([12])\.(weight|bias)", _OUR_LAYER + r"ln_\2.\3"),
    Rule(_LAYER + r"mlp\.fc1\.(weight|bias)", _OUR_LAYER + r"mlp.c_fc.\2"),
    Rule(_LAYER + r"mlp\.fc2\.(weight|bias)", _OUR_LAYER + r"mlp.c_proj.\2"),
    Rule(r"(?:text_model\.)?final_layer_norm\.(weight|bias)", r"ln_final.\1"),
    Rule(
        r"vision_model\..*|visual_projection\..*|(?:text_model\.)?text_projection(?:\..*)?|logit_scale",
        None,
        why="parts of CLIP that SD-1.x does not use",
    ),
]
"""Rules for transformers' CLIPTextModel, with or without the prefix `text_model.` (before 5.0), and CLIPModel."""
