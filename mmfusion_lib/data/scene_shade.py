"""Painting a scene: textures, words, one hard light and its shadows, by ray casting.

Every pixel averages 2 x 2 rays, each with a shadow ray. Colours are computed as they are displayed:
nothing here claims to be physics, only to be easy to recognise.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import scene_objects
from .scene_objects import BOARD, BOARD_FRONT, BODY, COLOURS, MATERIALS, SECOND, TEXT
from .scene_render import Camera, Room, Solid, background, dot, face_normals, first_hits, tracer_of


def picture(camera: Camera, room: Room, solids: list[Solid], size: int) -> np.ndarray:
    """The picture (size, size, 3) uint8, of 2 x 2 rays a pixel."""
    rays = camera.rays(2 * size).reshape(-1, 3)  # (N, 3), N = 4 * size * size
    starts = np.cumsum([0] + [len(s.vertices) for s in solids[:-1]])
    vertices = np.concatenate([s.vertices for s in solids])
    faces = np.concatenate([s.faces + np.int32(start) for s, start in zip(solids, starts)])
    owner = np.concatenate([np.full(len(s.faces), i) for i, s in enumerate(solids)])
    materials = np.concatenate([s.materials for s in solids])
    tracer = tracer_of(vertices, faces)

    face, depth = first_hits(tracer, camera.position, rays)
    plane, is_wall = background(camera, room, rays)
    on_object = depth < plane
    depth = np.minimum(depth, plane)
    points = camera.position.astype(np.float32) + depth[:, None] * rays  # (N, 3)
    normal = np.where(is_wall[:, None], np.float32([0, -1, 0]), np.float32([0, 0, 1]))
    normal[on_object] = face_normals(vertices, faces)[face[on_object]]
    normal *= np.where(dot(normal, rays) > 0, np.float32(-1), np.float32(1))

    colour = np.empty((len(rays), 3), np.float32)
    on_table, on_wall = ~on_object & ~is_wall, ~on_object & is_wall
    colour[on_table] = _SURFACES[room.surface](points[on_table, :2]) * room.surface_tint
    colour[on_wall] = _WALLS[room.wall](points[on_wall][:, [0, 2]]) * room.wall_tint
    owners = np.where(on_object, owner[face], -1)
    for number, solid in enumerate(solids):
        own = owners == number
        colour[own] = _paint(solid, materials[face[own]], solid.local(points[own]))

    lit = _lit(tracer, points, normal, room.light)
    light = room.light.astype(np.float32)
    colour *= (0.5 + 0.1 * normal[:, 2] + 0.52 * np.maximum(normal @ light, 0) * lit)[:, None]
    colour[on_object] += _shine(normal[on_object], rays[on_object], light) * lit[on_object, None]
    colour = colour.reshape(size, 2, size, 2, 3)
    colour = (colour[:, 0] + colour[:, 1]).sum(2) / 4  # (size, size, 3)
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _lit(tracer, points: np.ndarray, normal: np.ndarray, light: np.ndarray) -> np.ndarray:
    """1 where the light reaches a point, 0 in shadow: (N,) float32."""
    towards = np.broadcast_to(light.astype(np.float32), points.shape).copy()
    blocked = tracer.run(points + np.float32(1e-3) * normal, towards, query="OCCLUDED")
    return (blocked < 0).astype(np.float32)


def _shine(normal: np.ndarray, rays: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The highlight (N, 1): strongest where the normal halves the angle of light and viewer."""
    between = light - rays / np.sqrt(dot(rays, rays))
    between /= np.sqrt(dot(between, between))
    return 45 * np.maximum(dot(normal, between), 0) ** 24


def _paint(solid: Solid, materials: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Colours (N, 3) float32, before light, of points on one object."""
    colour = np.float32(MATERIALS)[materials]
    body = materials == BODY
    first, second = np.float32(COLOURS[solid.colour]), np.float32(SECOND[solid.colour])
    if solid.texture == "plain":
        colour[body] = first
    else:
        colour[body] = np.where(_pattern(solid.texture, local[body])[:, None], second, first)
    board = materials == TEXT
    if board.any():
        ink = np.float32((20, 20, 20) if first @ [0.3, 0.59, 0.11] > 125 else (250, 250, 250))
        colour[board] = first + _ink(solid.word, local[board])[:, None] * (ink - first)
    return colour


def _pattern(texture: str, local: np.ndarray) -> np.ndarray:
    """Where the second colour goes (N,): slanted stripes, or checks, cut out of the solid."""
    if texture == "striped":
        return (local @ np.float32([0.35, 0.25, 1.0]) / 0.24) % 1 < 0.4
    return np.floor(local / 0.17 + np.float32([0.5, 0.37, 0.31])).sum(1) % 2 < 0.5


def _ink(word: str, local: np.ndarray) -> np.ndarray:
    """How much ink (N,), 0 to 1, the word leaves at points of a sign; none on its back and rim."""
    stretch = scene_objects.kind("sign").stretch
    left, right, low, high = (stretch * edge for edge in BOARD)
    mask = _lettering(word)
    height, width = mask.shape
    x = (local[:, 0] - left) / (right - left) * width - 0.5
    y = (high - local[:, 2]) / (high - low) * height - 0.5
    x0 = np.clip(np.floor(x), 0, width - 2).astype(int)
    y0 = np.clip(np.floor(y), 0, height - 2).astype(int)
    fx, fy = np.clip(x - x0, 0, 1), np.clip(y - y0, 0, 1)
    top = mask[y0, x0] * (1 - fx) + mask[y0, x0 + 1] * fx
    bottom = mask[y0 + 1, x0] * (1 - fx) + mask[y0 + 1, x0 + 1] * fx
    front = local[:, 1] < stretch * (BOARD_FRONT + 0.005)
    return (top * (1 - fy) + bottom * fy) * front


@cache
def _lettering(word: str) -> np.ndarray:
    """The word in capitals, filling a board of 120 x 55: (55, 120) float32, 1 = ink."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(96)
    widths = [font.getlength(letter) + 12 for letter in word.upper()]
    big = Image.new("L", (int(sum(widths)), 140))
    pen = ImageDraw.Draw(big)
    for letter, start in zip(word.upper(), np.cumsum([0, *widths[:-1]])):
        pen.text((start + 6, 120), letter, fill=255, font=font, anchor="ls", stroke_width=3)
    board = Image.new("L", (120, 55))
    board.paste(big.crop(big.getbbox()).resize((108, 41), Image.Resampling.LANCZOS), (6, 7))
    return np.asarray(board, dtype=np.float32) / 255


# The table's and the wall's patterns: plane coordinates in metres (N, 2) -> brightness or RGB.


def _wave(p: np.ndarray, x: float, y: float) -> np.ndarray:
    return np.sin(p[:, 0] * np.float32(x) + p[:, 1] * np.float32(y))


def _wood(p: np.ndarray) -> np.ndarray:
    plank = np.floor(p[:, 1] / np.float32(0.14))
    seam = (p[:, 1] / np.float32(0.14)) % 1 < 0.06
    grain = _wave(p, 7, 95) + 0.6 * _wave(p, 23, 210) + np.sin(plank * 12.9)
    return (1 + 0.045 * grain - 0.25 * seam)[:, None]


def _tiles(p: np.ndarray) -> np.ndarray:
    gap = ((p / np.float32(0.16)) % 1 < 0.05).any(1)
    cell = np.floor(p / np.float32(0.16)) @ np.float32([12.9, 78.2])
    return (1 + 0.04 * np.sin(cell) - 0.22 * gap)[:, None]


def _cloth(p: np.ndarray) -> np.ndarray:
    bands = ((p / np.float32(0.12)) % 1 < 0.5).sum(1)
    return (0.88 + 0.10 * bands)[:, None]


def _stone(p: np.ndarray) -> np.ndarray:
    bend = p + 0.06 * np.stack([_wave(p, 9, 14), _wave(p, -13, 8)], 1)
    return (1 + 0.05 * _wave(bend, 31, 17) + 0.05 * _wave(bend, -19, 43))[:, None]


def _plaster(p: np.ndarray) -> np.ndarray:
    return (1 + 0.03 * _wave(p, 5, 3))[:, None]


def _bricks(p: np.ndarray) -> np.ndarray:
    row = np.floor(p[:, 1] / np.float32(0.07))
    along = p[:, 0] / np.float32(0.18) + 0.5 * (row % 2)
    joint = ((p[:, 1] / np.float32(0.07)) % 1 < 0.12) | (along % 1 < 0.05)
    return (1 + 0.05 * np.sin(12.9 * np.floor(along) + 78.2 * row) + 0.14 * joint)[:, None]


def _wallpaper(p: np.ndarray) -> np.ndarray:
    return (0.96 + 0.09 * ((p[:, 0] / np.float32(0.13)) % 1 < 0.5))[:, None]


def _panels(p: np.ndarray) -> np.ndarray:
    groove = (p[:, 0] / np.float32(0.2)) % 1 < 0.05
    return (1 - 0.16 * groove - 0.10 * (np.abs(p[:, 1] - np.float32(0.45)) < 0.012))[:, None]


_SURFACES = {"wood": _wood, "tiles": _tiles, "cloth": _cloth, "stone": _stone}
_WALLS = {"plaster": _plaster, "bricks": _bricks, "wallpaper": _wallpaper, "panels": _panels}
SURFACES, WALLS = tuple(_SURFACES), tuple(_WALLS)
