"""Which of our weights a LoRA module of a foreign file belongs to.

Foreign names are not taken apart: an underscore may stand for a dot or for itself. Instead every name that
one of our weights can have in a file is written down, dots as underscores, and looked up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Side = str
"""Which tensor of a module a key names: down, up, mid, alpha; hada_w1_a and so on of LoHa, lokr_w1 and so on of LoKr;
dora_scale (LyCORIS) or magnitude (PEFT) of DoRA; weight and on_input (LyCORIS) or ia3_l (PEFT) of IA3."""


@dataclass(frozen=True)
class Site:
    """A weight of ours, or rows of it, that is one weight in foreign files."""

    key: str
    """As in a checkpoint of ours."""
    shape: tuple[int, ...]
    """Of the rows."""
    first: int = 0

    @property
    def rows(self) -> slice:
        """Where the site lies along the first axis of the weight."""
        return slice(self.first, self.first + self.shape[0])


# kohya .lora_down / .lora_up; PEFT .lora_A / .lora_B; diffusers .lora.down and, in attention processors, to_q_lora.down
_WEIGHT = re.compile(r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)[._](down|up|mid|A|B)(?:\.default)?\.weight")
_OTHER = re.compile(
    r"(.+)\.(alpha|dora_scale|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|on_input|"
    r"ia3_l)(?:\.default)?(?:\.weight)?"
)
_SIDES: dict[str, Side] = {"A": "down", "B": "up", "lora_magnitude_vector": "magnitude"}

_UNSUPPORTED = {
    "OFT or BOFT": r".*\.(oft_blocks|oft_diag|oft_[rR]|boft_[RsS]|rescale)\b.*",
    "GLoRA": r"(lora|lycoris)_.*\.(a[12]|b[12m])\.weight",
    "full differences": r".*\.(diff|diff_b|set_weight)",
    "trained norms": r".*\.[wb]_norm",
    "VeRA": r".*\.vera_lambda_[bd]\b.*",
    "HRA": r".*\.hra_u\b.*",
    "LoRA of a token table": r".*\.lora_embedding_[AB]\b.*",
    "LoRA with biases": r".*(lora[._](up|B)|lora_linear_layer\.up)(\.default)?\.bias",
    "LoRA in the order of the modules (lora_diffusion)": r"(unet|text_encoder):\d+:(up|down|rank|alpha)",
}
"""Kinds that are not computed here, and the keys that they are known by."""


def parse(key: str) -> tuple[str, Side] | None:
    """Module and side of a file's key; None if it is no part of an update that is known here.

    The `weight` of an IA3 module cannot be told from a network's own; see `group`.
    """
    if match := _WEIGHT.fullmatch(key) or _OTHER.fullmatch(key):
        return match[1], _SIDES.get(match[2], match[2])
    return None


def unsupported(key: str) -> str:
    """The kind of update, not supported, that a key belongs to; empty if it is none of them."""
    return next((kind for kind, pattern in _UNSUPPORTED.items() if re.fullmatch(pattern, key)), "")


def is_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds updates of weights, of a supported kind or another one."""
    # a lone alpha or scale may be anything
    return any(((side := parse(key)) and side[1] not in ("alpha", "dora_scale")) or unsupported(key) for key in keys)


def flatten(module: str) -> str:
    """The form in which modules are looked up: no wrappers, underscores for dots."""
    module = module.removeprefix("module.").removeprefix("base_model.model.")
    return module.replace(".processor.", ".").replace(".", "_")


def sites(keys: Mapping[str, Sequence[int]]) -> dict[str, Site]:
    """All sites of a backbone by their flattened names, each with and without the network's prefix.

    Args:
        keys: all keys of the backbone's checkpoint with their shapes.
    """
    table = {}
    layers = sum(re.fullmatch(r"unet\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", key) is not None for key in keys)
    for key, shape in keys.items():
        network, _, path = key.partition(".")
        if network == "unet" and path.endswith(".weight") and len(shape) in (2, 4):
            named = [(name, Site(key, tuple(shape))) for name in _unet_names(path.removesuffix(".weight"), layers)]
            prefixes = ("", "unet.", "lora_unet_", "lycoris_", "diffusion_model.", "model.diffusion_model.")
        elif network == "text":
            named = list(_text_sites(key, path, shape))
            prefixes = ("", "text_encoder.", "lora_te_", "lora_te1_", "lycoris_")
        else:
            continue
        table |= {flatten(prefix + name): site for prefix in prefixes for name, site in named}
    return table


def _unet_names(path: str, layers: int) -> Iterator[str]:
    """Our name, AnimateDiff's, a MotionAdapter's and LDM's; each also as attention processors call it."""
    names = {path, re.sub(r"\.temporals\.(\d+)", r".motion_modules.\1.temporal_transformer", path)}
    adapter = re.sub(r"\.attention_blocks\.(\d+)", lambda match: f".attn{int(match[1]) + 1}", path)
    names.add(adapter.replace(".temporals.", ".motion_modules."))
    names.update(_ldm_names(path, layers))
    for name in names:
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")


_LDM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
_LDM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MODULE = re.compile(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")


def _ldm_names(path: str, layers: int) -> Iterator[str]:
    """The names of a module of the spatial UNet in Stable Diffusion's own code (CompVis, openaimodel.py).

    Args:
        path: ours.
        layers: ResBlocks per down block.
    """
    if path in _LDM:
        yield _LDM[path]
    if not (match := _MODULE.fullmatch(path)) or match[3] == "temporals":
        return
    block, level, kind, j, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first = level * (layers + 1)
    if kind == "downsamplers":
        yield f"input_blocks.{first + layers + 1}.0.op"
    elif kind == "upsamplers":
        # behind a spatial transformer, where the level has one
        yield from (f"output_blocks.{first + layers}.{place}.conv" for place in (1, 2))
    else:
        place, rest = (1, rest) if kind == "attentions" else (0, _LDM_RESNET.get(rest, rest))
        stem = {"down_blocks": f"input_blocks.{first + j + 1}", "up_blocks": f"output_blocks.{first + j}"}.get(block)
        yield f"{stem}.{place}.{rest}" if stem else f"middle_block.{place or 2 * j}.{rest}"


_TEXT = {
    "attn.in_proj_weight": (
        ("self_attn.q_proj", "self_attn.to_q"),
        ("self_attn.k_proj", "self_attn.to_k"),
        ("self_attn.v_proj", "self_attn.to_v"),
    ),
    "attn.out_proj.weight": (("self_attn.out_proj", "self_attn.to_out"),),
    "mlp.c_fc.weight": (("mlp.fc1",),),
    "mlp.c_proj.weight": (("mlp.fc2",),),
}
"""Weights of a layer of our text tower, and the transformers modules that they are joined from: each by its own name
and by that of diffusers 0.15 to 0.17."""


def _text_sites(key: str, path: str, shape: Sequence[int]) -> Iterator[tuple[str, Site]]:
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", path)
    if match is None:
        return
    parts = _TEXT.get(match[2], ())
    for i, names in enumerate(parts):
        height = shape[0] // len(parts)
        for name in (f"{prefix}encoder.layers.{match[1]}.{name}" for prefix in ("text_model.", "") for name in names):
            yield name, Site(key, (height, *shape[1:]), i * height)


Modules = dict[Site, dict[Side, str]]
"""The file's keys of each module by their side."""


@dataclass(frozen=True)
class Grouping:
    """A file's keys by the modules that they belong to, and those that cannot be used."""

    modules: Modules
    unmatched: list[str]
    """Keys whose module this backbone does not have."""
    odd: list[str]
    """Keys of a module that the backbone has, but of no kind that is computed here."""
    twice: list[str]
    """Pairs of keys of the same module and side."""


def group(names: Iterable[str], table: Mapping[str, Site]) -> Grouping:
    """Finds the module of each key of a file.

    Args:
        names: the file's keys.
        table: from `sites`.
    """
    names = set(names)
    found = Grouping({}, [], [], [])
    for name in sorted(names):
        module, side = parse(name) or ("", "")
        if (stem := name.removesuffix(".weight")) != name and f"{stem}.on_input" in names:
            module, side = stem, "weight"
        site = table.get(flatten(module))
        if site is None:
            (found.odd if _inside(name, table) else found.unmatched).append(name)
        elif side in found.modules.setdefault(site, {}):
            found.twice.append(f"{name} and {found.modules[site][side]}")
        else:
            found.modules[site][side] = name
    return found


def _inside(name: str, table: Mapping[str, Site]) -> bool:
    """Whether a key, whatever its end, begins with a module of ours."""
    parts = name.split(".")
    return any(flatten(".".join(parts[:i])) in table for i in range(1, len(parts)))
