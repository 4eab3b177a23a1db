"""Drawing one scene: which objects, where they stand, from where they are seen, in which light.

The draw depends on (seed, split, index) only: ``size`` changes the number of pixels, not the scene,
and any scene can be made alone.

A scene's ``graph`` lists what stands where::

    {"id": "test-000012", "split": "test", "seed": 0, "size": 112, "surface": "wood",
     "wall": "bricks", "light": "left", "objects": [{"id": 0, "kind": "mug", "colour": "red",
     "texture": "striped", "size": "small", "word": null, "position": [x, y], "distance": 1.31,
     "box": [x0, y0, x1, y1], "pixels": 412, "visible": 0.93}, ...]}

``position`` is on the table in metres (x to the right, y away from the viewer), ``distance`` from
the camera to the object's centre in metres, ``box`` the extent of its visible pixels (exclusive
end), ``visible`` the share of its pixels that nothing hides. ``objects[i]["id"] == i`` is its value
in ``instances``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from . import scene_objects, scene_render, scene_shade
from .scene_objects import COLOURS, KINDS, SIZES, TEXTURES, WORDS
from .scene_render import NOTHING, Camera, Room, Solid
from .scene_shade import SURFACES, WALLS

SPLITS = ("train", "validation", "test")
LIGHTS = {"left": -60.0, "front": 0.0, "right": 60.0}  # azimuth from the viewer's side, degrees
#: Two colours of every kind appear in test scenes only: 40 of the 160 pairs, five of each colour.
HELD_OUT = frozenset(
    (tuple(COLOURS)[(number + shift) % len(COLOURS)], name)
    for number, name in enumerate(KINDS)
    for shift in (0, 4)
)

_REPEAT = 0.25  # share of later objects that repeat the kind of an earlier one, so counts exceed 1
_LEAST_VISIBLE, _LEAST_PIXELS = 0.65, 150  # of every object, at 112 pixels
_LEAST_SIGN = 0.95  # of a sign, so that its word can be read
_LAYOUT = 112  # placements are judged at this size, whatever the size asked for
_PLACES = 48  # tried for an object before the objects are placed anew
_AREA = (-0.40, 0.40, -0.34, 0.50)  # of the table, metres: x from, to; y from, to
_TINTS = np.float32(
    [[185, 150, 115], [150, 160, 170], [160, 168, 150], [178, 170, 160], [165, 155, 165]]
)


@dataclass
class Scene:
    """One scene and its labels, all of one size.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32, metres along the optical axis; every pixel has one.
        normal: (H, W, 3) float32 unit vectors in camera space: x right, y up, z to the viewer.
        classes: (H, W) uint8 index into ``KINDS``; 255 is the table or the wall.
        instances: (H, W) uint8 ``id`` of the object in the graph; 255 as above.
        edges: (H, W) uint8, 255 where instance, depth or normal jump, else 0.
        graph: what stands where; see the module's text.
    """

    image: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    classes: np.ndarray
    instances: np.ndarray
    edges: np.ndarray
    graph: dict[str, Any]


def make_scene(split: str, index: int, seed: int = 0, size: int = 112) -> Scene:
    """Make scene ``index`` of a split.

    Args:
        split: one of ``SPLITS``.
        index: 0 or more; there is no last one.
        seed: another seed gives other scenes.
        size: height and width in pixels, 32 to 512.

    Raises:
        InputError: a value is out of range, or trimesh or embreex is not installed.
    """
    check(split, size, seed)
    if index < 0:
        raise InputError(f"Scene index {index} is negative: count scenes from 0.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    count = int(rng.integers(2, 6))
    light = str(rng.choice(list(LIGHTS)))
    camera, room = _draw_view(rng, light)
    solids, tries = None, 0
    while solids is None:
        if tries % 20 == 0:
            things = _draw_things(rng, split, count)
        solids, tries = _place(rng, camera, things), tries + 1
    found = scene_render.labels(camera, room, solids, size)
    classes = np.full(256, NOTHING, np.uint8)
    classes[: len(solids)] = [KINDS.index(solid.kind) for solid in solids]
    graph = {
        "id": f"{split}-{index:06d}",
        "split": split,
        "seed": seed,
        "size": size,
        "surface": room.surface,
        "wall": room.wall,
        "light": light,
        "objects": [
            {"id": number, **thing, **_measure(solid, camera, found.instances == number)}
            for number, (thing, solid) in enumerate(zip(things, solids))
        ],
    }
    for entry, pixels in zip(graph["objects"], found.alone):
        entry["visible"] = round(entry["pixels"] / int(pixels), 4)
    return Scene(
        image=scene_shade.picture(camera, room, solids, size),
        depth=found.depth,
        normal=found.normal,
        classes=classes[found.instances],  # (H, W)
        instances=found.instances,
        edges=scene_render.edges(camera, found),
        graph=graph,
    )


def check(split: str, size: int, seed: int) -> None:
    """Raise ``InputError`` when no such scenes are made."""
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r} of scenes: use one of {', '.join(SPLITS)}.")
    if not 32 <= size <= 512:
        raise InputError(f"Scenes of size {size} are not made: use 32 to 512 pixels.")
    if seed < 0:
        raise InputError(f"Seed {seed} of scenes is negative: use 0 or more.")


def _draw_view(rng: np.random.Generator, light: str) -> tuple[Camera, Room]:
    """Camera, light, surface and wall."""
    yaw = np.radians(rng.uniform(-20, 20))
    height = np.radians(rng.uniform(19, 31))
    distance = rng.uniform(1.25, 1.45)
    away = np.array([np.sin(yaw) * np.cos(height), -np.cos(yaw) * np.cos(height), np.sin(height)])
    target = np.array([0.0, 0.03, 0.09]) + rng.uniform(-0.02, 0.02, 3)
    camera = Camera.look_at(target + distance * away, target, focal=rng.uniform(1.6, 1.8))
    azimuth = yaw + np.radians(LIGHTS[light] + rng.uniform(-15, 15))
    rise = np.radians(rng.uniform(42, 62))
    room = Room(
        surface=str(rng.choice(SURFACES)),
        surface_tint=rng.choice(_TINTS) * np.float32(rng.uniform(0.85, 1.1)),
        wall=str(rng.choice(WALLS)),
        wall_tint=rng.choice(_TINTS) * np.float32(rng.uniform(0.9, 1.15)),
        wall_y=float(rng.uniform(0.75, 1.0)),
        light=np.array(
            [np.sin(azimuth) * np.cos(rise), -np.cos(azimuth) * np.cos(rise), np.sin(rise)]
        ),
    )
    return camera, room


def _draw_things(rng: np.random.Generator, split: str, count: int) -> list[dict[str, Any]]:
    """``count`` objects; in a test scene one of them is a held-out pair, in others none is."""
    special = int(rng.integers(count)) if split == "test" else -1
    held_out = sorted(HELD_OUT)
    words = list(rng.permutation(WORDS))  # no word twice in a scene
    things: list[dict[str, Any]] = []
    for number in range(count):
        if number == special:
            colour, kind = held_out[rng.integers(len(held_out))]
        else:
            repeat = things and rng.random() < _REPEAT
            kind = things[rng.integers(len(things))]["kind"] if repeat else _draw_kind(rng)
            allowed = [c for c in COLOURS if split == "test" or (c, kind) not in HELD_OUT]
            colour = str(rng.choice(allowed))
        texture, size = str(rng.choice(TEXTURES)), str(rng.choice(list(SIZES)))
        sign = kind == "sign"
        things.append(
            {
                "kind": kind,
                "colour": colour,
                "texture": "plain" if sign else texture,
                "size": size,
                "word": str(words[number]) if sign else None,
            }
        )
    return things


def _draw_kind(rng: np.random.Generator) -> str:
    """Any kind; a sign three times as often as another, so that questions about words are many."""
    weights = np.array([3.0 if kind == "sign" else 1.0 for kind in KINDS])
    return str(rng.choice(KINDS, p=weights / weights.sum()))


def _place(rng, camera: Camera, things: list[dict]) -> list[Solid] | None:
    """Stand the objects on the table, the largest first; None when one finds no place.

    An object must be in the picture whole, keep its footprint clear of the others', and leave every
    object, itself included, visible enough.
    """
    facing = np.arctan2(camera.axes[2, 0], -camera.axes[2, 1])  # turns a front towards us
    scales = [SIZES[thing["size"]] * rng.uniform(0.95, 1.05) for thing in things]
    bulk = [scene_objects.kind(t["kind"]).stretch * scale for t, scale in zip(things, scales)]
    solids: dict[int, Solid] = {}
    depths, prints, boxes = [], [], []
    for number in sorted(range(len(things)), key=lambda i: -bulk[i]):
        thing, scale = things[number], scales[number]
        kind = scene_objects.kind(thing["kind"])
        positions = rng.uniform(_AREA[0::2], _AREA[1::2], (_PLACES, 2))
        turns = facing + np.radians(rng.uniform(-kind.turn, kind.turn, _PLACES))
        turns += np.pi * (kind.flip & (rng.random(_PLACES) < 0.5))
        footprints, bounds = _extents(camera, thing["kind"], scale, positions, turns)
        whole = (bounds[:, 0] > 0.01).all(1) & (bounds[:, 1] < 0.99).all(1)
        hidden = _cover(bounds, np.reshape(boxes, (-1, 2, 2))).max(1, initial=0) > 0.5
        for i in np.nonzero(whole & ~hidden)[0]:
            if any(_overlap(footprints[i], other) for other in prints):
                continue
            look = {key: thing[key] for key in ("kind", "colour", "texture", "word")}
            solid = Solid(**look, scale=scale, position=positions[i], turn=turns[i])
            depth, _ = solid.trace(camera, _LAYOUT)
            alone, shown = scene_render.visibility([*depths, depth])
            least = [_LEAST_SIGN if s.word else _LEAST_VISIBLE for s in [*solids.values(), solid]]
            if (shown < np.maximum(_LEAST_PIXELS, least * alone)).any():
                continue
            solids[number] = solid
            depths.append(depth)
            prints.append(footprints[i])
            boxes.append(bounds[i])
            break
        else:
            return None
    return [solids[number] for number in range(len(things))]


def _extents(camera, kind, scale, positions, turns, margin=0.01) -> tuple[np.ndarray, np.ndarray]:
    """What a kind would take up at P places.

    Returns:
        its rectangle on the table with a margin, (P, 4, 2) metres, and the corners of its bounding
        block's box in the picture, (P, 2, 2) as [[x0, y0], [x1, y1]] from 0 to 1.
    """
    (x0, y0, _), (x1, y1, height) = scene_objects.extent(kind) * scale
    block = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    block += np.sign(block) * margin
    cos, sin = np.cos(turns), np.sin(turns)
    rotation = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)  # (P, 2, 2)
    footprint = block @ rotation + positions[:, None]  # (P, 4, 2)
    corners = np.zeros((len(turns), 8, 3))
    corners[:, :4, :2] = corners[:, 4:, :2] = footprint
    corners[:, 4:, 2] = height
    spots = camera.project(corners.reshape(-1, 3)).reshape(-1, 8, 2)  # (P, 8, 2)
    return footprint, np.stack([spots.min(1), spots.max(1)], 1)


def _cover(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area that boxes (P, 2, 2) share with boxes (K, 2, 2), as a share of the smaller: (P, K)."""
    a = a[:, None]
    sides = np.minimum(a[..., 1, :], b[:, 1]) - np.maximum(a[..., 0, :], b[:, 0])  # (P, K, 2)
    smaller = np.minimum(_area(a), _area(b))
    return np.maximum(sides, 0).prod(-1) / smaller


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 1, :] - boxes[..., 0, :]).prod(-1)


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two rectangles (4, 2) intersect: no side of either separates them."""
    for corners in (a, b):
        for axis in (corners[1] - corners[0], corners[2] - corners[1]):
            along, other = a @ axis, b @ axis
            if along.max() < other.min() or other.max() < along.min():
                return False
    return True


def _measure(solid: Solid, camera: Camera, mask: np.ndarray) -> dict[str, Any]:
    """The graph's numbers of one object; ``mask`` (H, W) is where it shows."""
    rows, columns = np.nonzero(mask)
    centre = (solid.vertices.min(0) + solid.vertices.max(0)) / 2
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return {
        "position": [round(float(v), 4) for v in solid.origin[:2]],
        "distance": round(float(np.linalg.norm(centre - camera.position)), 4),
        "box": [int(v) for v in box],
        "pixels": len(rows),
    }
