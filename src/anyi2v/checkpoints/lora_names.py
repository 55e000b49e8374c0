"""Mapping of LoRA modules in third-party files to our weights.

Names in files are not parsed, because an underscore may represent a dot or itself. Instead, all names that our weights
can have in a file are enumerated, with dots as underscores, and looked up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Side = str
"""Role of a tensor in its module: down, up, mid, alpha; hada_w1_a etc. for LoHa, lokr_w1 etc. for LoKr; dora_scale
(LyCORIS) or magnitude (PEFT) for DoRA; weight and on_input (LyCORIS) or ia3_l (PEFT) for IA3."""


@dataclass(frozen=True)
class Site:
    """One of our weights, or some of its rows, that corresponds to one weight in third-party files."""

    key: str
    """Key in our checkpoints."""
    shape: tuple[int, ...]
    """Shape of the rows."""
    first: int = 0

    @property
    def rows(self) -> slice:
        """Position of the site along the first axis of the weight."""
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
"""Unsupported kinds, with the patterns of their keys."""


def parse(key: str) -> tuple[str, Side] | None:
    """Split a file's key into module and side; None if it is not part of a supported update.

    The `weight` of an IA3 module cannot be distinguished from a network's own weight; see `group`.
    """
    if match := _WEIGHT.fullmatch(key) or _OTHER.fullmatch(key):
        return match[1], _SIDES.get(match[2], match[2])
    return None


def unsupported(key: str) -> str:
    """Return the unsupported kind of update that a key belongs to; empty if none."""
    return next((kind for kind, pattern in _UNSUPPORTED.items() if re.fullmatch(pattern, key)), "")


def is_lora(keys: Iterable[str]) -> bool:
    """Return whether a file with these keys has updates of weights, of a supported kind or not."""
    # an alpha or scale alone may be anything
    return any(((side := parse(key)) and side[1] not in ("alpha", "dora_scale")) or unsupported(key) for key in keys)


def flatten(module: str) -> str:
    """Normalise a module's name for lookup: without wrappers, with underscores for dots."""
    module = module.removeprefix("module.").removeprefix("base_model.model.")
    return module.replace(".processor.", ".").replace(".", "_")


def sites(keys: Mapping[str, Sequence[int]]) -> dict[str, Site]:
    """Return all sites of a backbone by their flattened names, with and without the network's prefix.

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
    """Yield our name, AnimateDiff's, a MotionAdapter's and LDM's, each also in the form of attention processors."""
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
    """Yield the names of a spatial UNet module in Stable Diffusion's own code (CompVis, openaimodel.py).

    Args:
        path: our name.
        layers: number of ResBlocks per down block.
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
        # after a spatial transformer, if the level has one
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
"""Weights of a layer of our text tower, with the transformers modules that they are concatenated from, by their own
names and those of diffusers 0.15 to 0.17."""


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
"""Keys of the file by module and side."""


@dataclass(frozen=True)
class Grouping:
    """A file's keys grouped by module, and those that cannot be used."""

    modules: Modules
    unmatched: list[str]
    """Keys whose module this backbone does not have."""
    odd: list[str]
    """Keys of unsupported kinds, of modules that the backbone has."""
    twice: list[str]
    """Pairs of keys of the same module and side."""


def group(names: Iterable[str], table: Mapping[str, Site]) -> Grouping:
    """Group the keys of a file by module.

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
    """Return whether a key starts with one of our modules."""
    parts = name.split(".")
    return any(flatten(".".join(parts[:i])) in table for i in range(1, len(parts)))
