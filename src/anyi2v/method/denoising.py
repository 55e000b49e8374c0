"""One guided noise prediction, with or without injection."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.diffusion import guided
from anyi2v.taps import Recorder, Tap, chain, no_tap


@torch.no_grad()
def predict_noise(
    unet: UNet,
    z: Float[Tensor, "b f c h w"],
    timestep: int,
    negative: Float[Tensor, "b l d"],
    positive: Float[Tensor, "b l d"],
    scale: float,
    injection: Tap = no_tap,
    *,
    tap: Tap = no_tap,
    fps: float | None = None,
    window: int | None = None,
    together: bool = True,
    deep: dict[str, Tensor] | None = None,
) -> Float[Tensor, "b f c h w"]:
    """Classifier-free guidance; the injection acts on the conditional pass only.

    A scale of 1 or less needs no unconditional pass, and none is made. With injection the two passes are
    separate, because the conditional one shares frame 1's keys and values and so computes less; without it
    they are one batch, unless `together` is False, which saves memory. `tap` acts after the injection, on both
    passes: on the unconditional one first, or on a batch whose second entry is the conditional one (until the
    first text both are one entry, see `UNet.forward`). `fps` and `window` are told to the UNet in both passes. A
    pass whose features below the finest level are in `deep` takes them over, another one puts its own there (see
    `UNet.forward`).
    """

    def predict(kind: str, z: Tensor, text: Tensor, tap: Tap) -> Tensor:
        known, recorder = (deep or {}).get(kind), Recorder((unet.deep_point,), stop=None)
        if deep is not None and known is None:
            tap = chain(tap, recorder)
        noise = unet(z, timestep, text, fps=fps, window=window, tap=tap, deep=known)
        if deep is not None and known is None:
            deep[kind] = recorder.seen[unet.deep_point]
        return noise

    if scale <= 1:
        return predict("cond", z, positive, chain(injection, tap))
    if injection is not no_tap or not together:
        uncond = predict("uncond", z, negative, tap)
        cond = predict("cond", z, positive, chain(injection, tap))
        return guided(uncond, cond, scale)
    both = z if len(z) == 1 else torch.cat([z, z])
    uncond, cond = predict("both", both, torch.cat([negative, positive]), tap).chunk(2)
    return guided(uncond, cond, scale)
