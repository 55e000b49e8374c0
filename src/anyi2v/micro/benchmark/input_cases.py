"""Benchmark cases that vary the user's input: boxes, masks, camera moves, aspect ratios, meshes and layers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from anyi2v.errors import InputError
from anyi2v.images.fit import Mode, fit_image
from anyi2v.images.raster import Camera, Style, draw
from anyi2v.micro.benchmark.case import (
    DARKEST,
    LEAST_TEXTURE,
    Case,
    accepted,
    drawn_case,
    inside,
    large,
    moves,
    on_texture,
    targets,
)
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.micro.benchmark.measure import centroids
from anyi2v.micro.world.solids import cloud, prism
from anyi2v.micro.world.world import Modality, Scene, Sprite, box, object_masks, sample_sprite, uniform
from anyi2v.tracks import Track, Tracks, centre
from anyi2v.tracks.camera import camera_tracks

LEAST_GROWTH = 1.25
"""Minimum growth factor, or its inverse, of an object that is resized."""
ZOOM = 1.4
"""Zoom factor of the last frame."""
BAND = 1 / 8
"""Share of the frame's height cut off at the top and the bottom for another aspect ratio."""
FLAT_COLOURS = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""Colours of a segmentation with three objects, the background first."""
LOOSENESS = 2 / 64
"""Margin of a loose mask around the object, in frame widths."""
LOOSE_BOX = 1.3, 2.0
"""Minimum and maximum ratio of a loose box's sides to those of the object's box."""
OFF_CENTRE = 0.5
"""Minimum shift of a loose box from the object's centre along x or y, as a share of the shift at which it still
contains the object."""
POINTS = 4000
"""Number of points of a point cloud."""


def resize(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with an object that grows or shrinks as it moves, given by its first and last box."""

    def suits(scene: Scene) -> bool:
        (sprite, *more) = scene.sprites
        growth = sprite.radii[-1] / sprite.radii[0]
        seen = large(sprite, scene.size) and inside(sprite, (0, 0, scene.size, scene.size))
        return not more and seen and max(growth, 1 / growth) >= LEAST_GROWTH

    scene = accepted(generator, suits)
    # two key frames give a motion linear in time
    scene = replace(scene, sprites=(_linear(scene.sprites[0]),))
    case = drawn_case(seed, condition, generator, scene)
    (track,) = case.tracks.objects
    return _with_track(case, replace(track, boxes=(track.boxes[0], track.boxes[-1])))


def leaving(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with an object that leaves the frame, with its last box at least half outside."""

    def suits(scene: Scene) -> bool:
        (sprite, *more) = scene.sprites
        gone = any(not 0 <= c <= scene.size for c in sprite.centres[-1])
        return not more and gone and large(sprite, scene.size) and not any(scene.pan[-1])

    return drawn_case(seed, condition, generator, accepted(generator, suits))


def three_objects(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with three objects that move separately."""
    while True:
        scene = accepted(generator, _one_moves)
        for _ in range(200):  # there may be no room for another one
            if len(scene.sprites) == 3:
                case = drawn_case(seed, condition, generator, replace(scene, flat_colours=FLAT_COLOURS))
                # the text tower has too few positions for an article each
                things = " and ".join(f"{sprite.colour} {sprite.shape}" for sprite in case.scene.sprites)
                return replace(case, prompt=f"a {things} on a {case.scene.background} background")
            sprite = sample_sprite(generator, "straight", None, scene.frames, scene.size)
            more = replace(scene, sprites=(*scene.sprites, sprite))
            if sprite.colour not in {s.colour for s in scene.sprites} and moves(more):
                scene = more


def plain(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with one object, as in the benchmark's plain cases."""
    return drawn_case(seed, condition, generator, accepted(generator, _one_moves))


def user_mask(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with the object's exact mask, whose centre is the salient point."""
    case = plain(seed, condition, generator)
    (track,) = case.tracks.objects
    return _with_track(case, replace(track, points=(), mask=case.targets[0].mask.numpy()))


def loose_mask(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with a mask around the object that includes some background."""
    case = user_mask(seed, condition, generator)
    (track,), reach = case.tracks.objects, round(LOOSENESS * case.scene.size)
    mask = F.max_pool2d(case.targets[0].mask[None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    return _with_track(case, replace(track, mask=mask.numpy()))


def loose_box(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case with boxes as drawn by hand, much larger than the object and off its centre, on a textured
    background.

    The texture is visible in the condition image, so that the box contains things that should not move along.
    """
    growth = uniform(generator, *LOOSE_BOX)
    shares = [uniform(generator, -1, 1) for _ in range(2)]
    while max(map(abs, shares)) < OFF_CENTRE:
        shares = [uniform(generator, -1, 1) for _ in range(2)]

    def loose(sprite: Sprite) -> Sprite:
        """Return a sprite whose boxes are the loose ones."""
        r = sprite.radii[0]
        dx, dy = (share * (growth - 1) * r for share in shares)
        centres = tuple((x + dx, y + dy) for x, y in sprite.centres)
        return replace(sprite, centres=centres, radii=(growth * r,) * len(centres))

    def suits(scene: Scene) -> bool:
        _, _, amplitude = scene.stripes
        textured = amplitude >= LEAST_TEXTURE and scene.background != DARKEST
        seen = condition != "mixed" or scene.mixture[1] == "photo"
        frame = (0, 0, scene.size, scene.size)
        return textured and seen and _one_moves(scene) and inside(loose(scene.sprites[0]), frame)

    case = on_texture(seed, condition, generator, accepted(generator, suits))
    (track,), (sprite,) = case.tracks.objects, case.scene.sprites
    wide = loose(sprite)
    return _with_track(case, replace(track, boxes=tuple(box(wide, f) for f in range(case.scene.frames))))


def zoom(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case in which the camera zooms in about the centre of the picture."""

    def grown(scene: Scene) -> Scene:
        (sprite,) = scene.sprites
        middle, factors = scene.size / 2, [1 + (ZOOM - 1) * f / (scene.frames - 1) for f in range(scene.frames)]
        centres = tuple(tuple(middle + (c - middle) * z for c in sprite.centres[0]) for z in factors)
        radii = tuple(sprite.radii[0] * z for z in factors)
        return replace(scene, sprites=(replace(sprite, centres=centres, radii=radii),))

    def suits(scene: Scene) -> bool:
        if len(scene.sprites) != 1 or any(scene.pan[-1]):
            return False
        (sprite,) = grown(scene).sprites
        return large(sprite, scene.size) and inside(sprite, (0, 0, scene.size, scene.size))

    scene = grown(accepted(generator, suits))
    case, frames = drawn_case(seed, condition, generator, scene), scene.frames
    scale = torch.tensor([1 / (1 + (ZOOM - 1) * f / (frames - 1)) for f in range(frames)])
    views = scale[:, None, None] * torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    first = case.truth[:1].expand(frames, -1, -1, -1)
    grid = F.affine_grid(views, list(first.shape), align_corners=False)
    tracks = camera_tracks({"zoom": ZOOM}, scene.size, scene.size, ())
    return replace(
        case,
        tracks=Tracks(scene.size, scene.size, tracks),
        truth=F.grid_sample(first, grid, align_corners=False, padding_mode="border"),
    )


def wide(seed: int, condition: Modality, generator: torch.Generator, side: float = 0.0) -> Case:
    """Generate a case of a 4:3 video, in which the object keeps a distance of `side` frame widths from the sides."""

    def suits(scene: Scene) -> bool:
        size = scene.size
        region = (side * size, BAND * size, size - side * size, size - BAND * size)
        return _one_moves(scene) and inside(scene.sprites[0], region)

    case = drawn_case(seed, condition, generator, accepted(generator, suits))
    size, band = case.scene.size, round(BAND * case.scene.size)
    rows = slice(band, size - band)
    masks = torch.stack(object_masks(case.scene))[:, :, rows]
    (track,) = case.tracks.objects
    boxes = tuple((x0, y0 - band, x1, y1 - band) for x0, y0, x1, y1 in track.boxes)
    track = replace(track, boxes=boxes, points=tuple((x, y - band) for x, y in track.points))
    return replace(
        case,
        image=case.image[:, rows],
        tracks=Tracks(size, size - 2 * band, (track,)),
        targets=targets(case.scene, masks),
        truth=case.truth[:, :, rows],
    )


def padded(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case of a 4:3 picture in a square video, padded at the top and the bottom."""
    return _fitted(wide(seed, condition, generator), "pad")


def cropped(seed: int, condition: Modality, generator: torch.Generator) -> Case:
    """Generate a case of the central square of a 4:3 picture, enlarged to the video."""
    return _fitted(wide(seed, condition, generator, side=BAND), "crop")


MAKERS: Mapping[Kind, Callable[[int, Modality, torch.Generator], Case]] = {
    "resize": resize,
    "leaving": leaving,
    "three objects": three_objects,
    "user mask": user_mask,
    "loose mask": loose_mask,
    "loose box": loose_box,
    "zoom": zoom,
    "wide": wide,
    "padded": padded,
    "cropped": cropped,
    "mixed": plain,
}


def _one_moves(scene: Scene) -> bool:
    return len(scene.sprites) == 1 and moves(scene)


def _with_track(case: Case, track: Track) -> Case:
    return replace(case, tracks=Tracks(case.tracks.width, case.tracks.height, (track,)))


def _linear(sprite: Sprite) -> Sprite:
    """Replace the path by a straight line between the first and last box, as in tracks."""
    frames = len(sprite.radii)
    boxes = Track("ends", (box(sprite, 0), box(sprite, frames - 1))).resample(frames).boxes
    return replace(sprite, centres=tuple(map(centre, boxes)), radii=tuple((b[2] - b[0]) / 2 for b in boxes))


def _fitted(case: Case, mode: Mode) -> Case:
    """Fit the case to a square video."""
    size = case.scene.size
    image, fit = fit_image(case.image, size, size, mode)
    masks = torch.stack(object_masks(case.scene))[:, :, round(BAND * size) : size - round(BAND * size)]
    fitted = torch.stack([torch.stack([torch.from_numpy(fit.mask(mask.numpy())) for mask in clip]) for clip in masks])
    found = targets(case.scene, fitted)
    return replace(
        case,
        image=image,
        tracks=fit.tracks(case.tracks),
        targets=tuple(replace(target, margin=target.margin * max(fit.scale)) for target in found),
        truth=torch.stack([fit_image(frame, size, size, mode)[0] for frame in case.truth]),
    )


def solid(seed: int, style: Style, generator: torch.Generator, *, points: bool) -> Case:
    """Generate a case with a rendering of a prism, or of points on its surface, seen almost from the front.

    The object starts in the centre of the frame, as renderings of files do. Raises InputError if embreex, which renders
    meshes, is missing.
    """
    if not points and find_spec("embreex") is None:
        raise InputError("cases of kind 'mesh' need embreex: pip install 'anyi2v[mesh]'")

    def centred(scene: Scene) -> Scene:
        (sprite,) = scene.sprites
        shift = [scene.size / 2 - c for c in sprite.centres[0]]
        centres = tuple((x + shift[0], y + shift[1]) for x, y in sprite.centres)
        return replace(scene, sprites=(replace(sprite, centres=centres),))

    scene = centred(accepted(generator, lambda scene: len(scene.sprites) == 1 and _one_moves(centred(scene))))
    case = drawn_case(seed, "silhouette", generator, scene)
    (sprite,), size = case.scene.sprites, case.scene.size
    vertices, faces = prism(sprite.shape, sprite.angle)
    if points:
        vertices, faces = cloud(vertices, faces, POINTS, generator), faces[:0]
    azimuth, elevation = uniform(generator, -20, 20), uniform(generator, -15, 15)
    camera = Camera(azimuth, elevation)
    camera = replace(camera, distance=camera.focal(size, size) / sprite.radii[0])
    fine = draw(vertices, faces, 2 * size, 2 * size, style="depth", camera=camera)[:1] > 0
    mask = F.avg_pool2d(fine.float(), 2)[0] >= 0.5
    (track,), (target,) = case.tracks.objects, case.targets
    offsets = torch.tensor(sprite.centres) - size / 2
    return replace(
        case,
        modality=style,
        image=draw(vertices, faces, size, size, style=style, camera=camera),
        tracks=Tracks(size, size, (replace(track, points=(), mask=mask.numpy()),)),
        targets=(replace(target, mask=mask, centres=centroids(mask[None]) + offsets),),
    )
