"""The things that stand in a scene: twenty kinds, each a small mesh composed of simple solids.

Every kind is built once, in its own coordinates: x to the right, y away from the viewer, z up, its
front towards -y. It stands on z = 0, is centred on the z axis, and its largest extent is about 1.
A face carries a material: 0 is the body, which takes the object's colour and texture; the others
are fixed (wheels, windows, a carrot nose); ``TEXT`` is the face of a sign that carries its word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .scene_solids import arc, ball, box, creation, lathe, slab, tube

if TYPE_CHECKING:
    import trimesh

COLOURS = {
    "red": (205, 22, 28),
    "yellow": (250, 214, 20),
    "green": (22, 142, 45),
    "blue": (25, 75, 205),
    "purple": (125, 40, 165),
    "pink": (255, 135, 190),
    "white": (240, 240, 240),
    "black": (38, 38, 42),
}
#: The second colour of stripes and checks: chosen so that the first still names the object.
SECOND = {
    "red": (245, 225, 220),
    "yellow": (95, 80, 30),
    "green": (222, 240, 215),
    "blue": (220, 230, 250),
    "purple": (232, 218, 245),
    "pink": (140, 30, 85),
    "white": (150, 155, 166),
    "black": (112, 112, 117),
}
TEXTURES = ("plain", "striped", "checked")
SIZES = {"small": 0.22, "large": 0.33}  # metres, of the largest extent of an ordinary kind
WORDS = (
    *("open", "stop", "exit", "sale", "taxi", "cafe", "bank", "post"),
    *("shop", "fish", "book", "milk", "toys", "park", "gold", "help"),
    *("free", "love", "west", "east", "kids", "food", "hall", "menu"),
)

BODY, GREY, DARK, WOOD, CREAM, ORANGE, GLASS, ROOF, CLAY, TEXT = range(10)
MATERIALS = (
    (255, 0, 255),  # BODY: replaced by the object's colour
    (150, 152, 155),
    (35, 35, 38),
    (120, 78, 45),
    (238, 228, 205),
    (245, 130, 25),
    (170, 210, 235),
    (105, 72, 62),
    (176, 98, 66),
    (255, 0, 255),  # TEXT: the board in the object's colour, under the word
)
BOARD = (-0.5, 0.5, 0.34, 0.80)  # x and z extent of a sign's board, before it is stretched
BOARD_FRONT = -0.04  # its y

Part = tuple["trimesh.Trimesh", int]


@dataclass(frozen=True)
class Shape:
    """A kind's mesh: ``vertices`` (V, 3) float64, ``faces`` (F, 3), ``materials`` (F,) int32."""

    vertices: np.ndarray
    faces: np.ndarray
    materials: np.ndarray


@dataclass(frozen=True)
class Kind:
    """How a kind is built, how much larger than ordinary it is, and how it may be turned.

    ``turn`` is the largest turn away from the viewer in degrees; ``flip`` also allows its mirror
    view from behind (a mug's handle on the left or on the right).
    """

    build: Callable[[], list[Part]]
    stretch: float = 1.0
    turn: float = 35.0
    flip: bool = False


@cache
def shape(kind: str) -> Shape:
    """The unit mesh of a kind, built once in a process."""
    parts = _KINDS[kind].build()
    vertices = np.concatenate([mesh.vertices for mesh, _ in parts])  # (V, 3)
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh, _ in parts[:-1]])
    faces = np.concatenate([mesh.faces + start for (mesh, _), start in zip(parts, starts)])
    materials = np.concatenate([np.full(len(mesh.faces), material) for mesh, material in parts])
    low, high = vertices.min(0), vertices.max(0)
    vertices = vertices - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    vertices *= _KINDS[kind].stretch / max(high[0] - low[0], high[2] - low[2])
    return Shape(vertices, faces.astype(np.int32), materials.astype(np.int32))


@cache
def extent(kind: str) -> np.ndarray:
    """The bounding block (2, 3) of a kind's unit mesh: its lowest and highest corner."""
    vertices = shape(kind).vertices
    return np.stack([vertices.min(0), vertices.max(0)])


# Kinds.


def _mug() -> list[Part]:
    wall = [(0, 0), (0.36, 0), (0.36, 0.84), (0.31, 0.84), (0.31, 0.06), (0, 0.06)]
    return [(lathe(wall), BODY), (tube(arc((0.33, 0.42), 0.24, -80, 80), 0.055), BODY)]


def _lamp() -> list[Part]:
    foot = [(0, 0), (0.26, 0), (0.26, 0.05), (0.05, 0.09), (0, 0.09)]
    shade = [(0, 0.5), (0.40, 0.5), (0.20, 1.0), (0, 1.0)]
    return [
        (lathe(foot), DARK),
        (tube([(0, 0, 0.05), (0, 0, 0.55)], 0.04), DARK),
        (lathe(shade), BODY),
    ]


def _house() -> list[Part]:
    front = [(-0.4, 0), (0.4, 0), (0.4, 0.48), (0, 0.88), (-0.4, 0.48)]
    eaves = [(0.54, 0.40), (0.54, 0.50), (0, 1.04), (0, 0.92)]
    window = [box((x - 0.09, x + 0.09), (-0.33, -0.3), (0.22, 0.40)) for x in (-0.22, 0.22)]
    return [
        (slab(front, 0.6), BODY),
        (slab(eaves, 0.72), ROOF),
        (slab([(-x, z) for x, z in reversed(eaves)], 0.72), ROOF),
        (box((0.2, 0.34), (0.05, 0.2), (0.6, 1.02)), ROOF),
        (box((-0.09, 0.09), (-0.33, -0.3), (0, 0.3)), DARK),
        *((mesh, GLASS) for mesh in window),
    ]


def _tree() -> list[Part]:
    crown = [(0, 0.3), (0.4, 0.3), (0.18, 0.6), (0.32, 0.56), (0.13, 0.86), (0.23, 0.82), (0, 1.16)]
    return [(lathe(crown), BODY), (lathe([(0.1, 0), (0.1, 0.35)]), WOOD)]


def _snowman() -> list[Part]:
    hat = [(0, 1.02), (0.21, 1.02), (0.21, 1.06), (0.13, 1.06), (0.13, 1.26), (0, 1.26)]
    nose = creation().cone(radius=0.045, height=0.22, sections=10)
    nose.apply_transform([[1, 0, 0, 0], [0, 0, -1, -0.13], [0, 1, 0, 0.92], [0, 0, 0, 1]])
    dots = [(-0.06, -0.145, 0.97), (0.06, -0.145, 0.97), (0, -0.20, 0.70), (0, -0.215, 0.60)]
    return [
        (ball(0.31, (0, 0, 0.28)), BODY),
        (ball(0.22, (0, 0, 0.66)), BODY),
        (ball(0.165, (0, 0, 0.94)), BODY),
        (lathe(hat, sections=20), DARK),
        (nose, ORANGE),
        *((ball(0.03, at, rings=4), DARK) for at in dots),
        *((tube([(s * 0.18, 0, 0.7), (s * 0.46, 0, 0.86)], 0.022, 6), WOOD) for s in (-1, 1)),
    ]


def _bottle() -> list[Part]:
    glass = [(0, 0), (0.20, 0), (0.21, 0.02), (0.21, 0.55), (0.08, 0.76), (0.08, 0.92), (0, 0.92)]
    cap = [(0, 0.9), (0.1, 0.9), (0.1, 1.02), (0, 1.02)]
    return [(lathe(glass), BODY), (lathe(cap), GREY)]


def _sign() -> list[Part]:
    left, right, low, high = BOARD
    return [
        (lathe([(0, 0), (0.2, 0), (0.2, 0.04), (0, 0.04)]), GREY),
        (box((-0.04, 0.04), (0, 0.06), (0, high)), GREY),
        (box((left, right), (BOARD_FRONT, 0.0), (low, high)), TEXT),
    ]


def _car() -> list[Part]:
    cabin = [(-0.34, 0.36), (0.28, 0.36), (0.12, 0.60), (-0.24, 0.60)]
    panes = [
        [(-0.27, 0.38), (-0.06, 0.38), (-0.06, 0.55), (-0.20, 0.55)],
        [(0.0, 0.38), (0.20, 0.38), (0.09, 0.55), (0.0, 0.55)],
    ]
    parts = [
        (slab([(-0.5, 0.12), (0.5, 0.12), (0.5, 0.3), (0.28, 0.38), (-0.5, 0.38)], 0.44), BODY),
        (slab(cabin, 0.38), BODY),
        *((slab(pane, 0.40), GLASS) for pane in panes),
        (slab([(0.19, 0.4), (0.255, 0.4), (0.135, 0.57), (0.08, 0.57)], 0.3), GLASS),
    ]
    for x in (-0.29, 0.29):
        for y in (-0.2, 0.2):
            tyre = [(x, y - 0.04, 0.13), (x, y + 0.04, 0.13)]
            hub = [(x, y - 0.05, 0.13), (x, y + 0.05, 0.13)]
            parts.append((creation().cylinder(radius=0.135, segment=tyre, sections=20), DARK))
            parts.append((creation().cylinder(radius=0.06, segment=hub, sections=12), GREY))
    return parts


def _chair() -> list[Part]:
    legs = [(x, y) for x in (-0.25, 0.19) for y in (-0.25, 0.19)]
    return [
        (box((-0.27, 0.27), (-0.27, 0.27), (0.42, 0.5)), BODY),
        (box((-0.27, 0.27), (0.2, 0.27), (0.5, 1.05)), BODY),
        *((box((x, x + 0.07), (y, y + 0.07), (0, 0.42)), BODY) for x, y in legs),
    ]


def _mushroom() -> list[Part]:
    stem = [(0, 0), (0.19, 0), (0.13, 0.2), (0.12, 0.5), (0, 0.5)]
    angle = np.linspace(0, np.pi / 2, 9)
    dome = [(0.46 * np.cos(a), 0.42 + 0.4 * np.sin(a)) for a in angle[:-1]]
    return [(lathe(stem), CREAM), (lathe([(0, 0.42), *dome, (0, 0.82)]), BODY)]


def _rocket() -> list[Part]:
    hull = [(0, 0.12), (0.13, 0.12), (0.19, 0.35), (0.19, 0.6), (0.13, 0.85), (0, 1.12)]
    fin = [(0.1, 0.12), (0.36, 0.0), (0.36, 0.12), (0.16, 0.45)]
    nozzle = [(0, 0.02), (0.1, 0.02), (0.07, 0.13), (0, 0.13)]
    window = creation().cylinder(
        radius=0.085, segment=[(0, -0.21, 0.62), (0, 0, 0.62)], sections=16
    )
    return [
        (lathe(hull), BODY),
        (lathe(nozzle), DARK),
        (window, GLASS),
        (slab(fin, 0.05), DARK),
        (slab([(-x, z) for x, z in reversed(fin)], 0.05), DARK),
        (slab([(-x, z) for x, z in reversed(fin)], 0.05, axis="x"), DARK),
    ]


def _football() -> list[Part]:
    return [(ball(0.5, (0, 0, 0.5), rings=18), BODY)]


def _gift() -> list[Part]:
    bow = [tube(arc((s * 0.13, 0.68), 0.1, 0, 360, 9), 0.035, 6) for s in (-1, 1)]
    return [
        (box((-0.38, 0.38), (-0.38, 0.38), (0, 0.58)), BODY),
        (box((-0.065, 0.065), (-0.4, 0.4), (0, 0.6)), ORANGE),
        (box((-0.4, 0.4), (-0.065, 0.065), (0, 0.6)), ORANGE),
        *((mesh, ORANGE) for mesh in bow),
    ]


def _robot() -> list[Part]:
    return [
        (box((-0.27, 0.27), (-0.18, 0.18), (0.26, 0.68)), BODY),
        (box((-0.2, 0.2), (-0.16, 0.16), (0.74, 1.04)), BODY),
        (box((-0.07, 0.07), (-0.07, 0.07), (0.66, 0.76)), GREY),
        *((box((x - 0.055, x + 0.055), (-0.19, -0.1), (0.86, 0.96)), CREAM) for x in (-0.09, 0.09)),
        *((box((x - 0.025, x + 0.025), (-0.2, -0.1), (0.88, 0.93)), DARK) for x in (-0.09, 0.09)),
        (box((-0.1, 0.1), (-0.18, -0.1), (0.78, 0.81)), DARK),
        *((box((x - 0.05, x + 0.05), (-0.07, 0.07), (0.3, 0.66)), GREY) for x in (-0.33, 0.33)),
        *((box((x - 0.08, x + 0.08), (-0.14, 0.1), (0, 0.27)), GREY) for x in (-0.14, 0.14)),
        (tube([(0, 0, 1.02), (0, 0, 1.16)], 0.02, 6), GREY),
        (ball(0.045, (0, 0, 1.18), rings=6), ORANGE),
    ]


def _boat() -> list[Part]:
    return [
        (slab([(-0.34, 0), (0.30, 0), (0.52, 0.26), (-0.44, 0.26)], 0.32), BODY),
        (tube([(0, 0, 0.2), (0, 0, 1.0)], 0.025, 8), WOOD),
        (slab([(0.05, 0.34), (0.46, 0.34), (0.05, 0.96)], 0.03), BODY),
        (slab([(-0.34, 0.34), (-0.05, 0.34), (-0.05, 0.86)], 0.03), BODY),
    ]


def _hat() -> list[Part]:
    felt = [(0, 0), (0.5, 0), (0.5, 0.05), (0.27, 0.07), (0.31, 0.62), (0, 0.62)]
    return [
        (lathe(felt), BODY),
        (lathe([(0.27, 0.07), (0.295, 0.07), (0.3, 0.2), (0.27, 0.2)]), GREY),
    ]


def _duck() -> list[Part]:
    beak = [(0.40, 0.58), (0.62, 0.52), (0.62, 0.58), (0.40, 0.70)]
    return [
        (ball(0.4, (0, 0, 0.26), squash=(1.05, 0.75, 0.68)), BODY),
        (slab([(-0.3, 0.25), (-0.16, 0.42), (-0.56, 0.54)], 0.24), BODY),
        (ball(0.22, (0.25, 0, 0.64)), BODY),
        (slab(beak, 0.17), ORANGE),
        *((ball(0.04, (0.36, y, 0.72), rings=6), DARK) for y in (-0.165, 0.165)),
        *((ball(0.05, (0.345, y, 0.72), rings=6), CREAM) for y in (-0.15, 0.15)),
    ]


def _cactus() -> list[Part]:
    pot = [(0, 0), (0.19, 0), (0.25, 0.22), (0.28, 0.22), (0.28, 0.3), (0, 0.3)]
    return [
        (lathe(pot), CLAY),
        (tube([(0, 0, 0.25), (0, 0, 0.98)], 0.125, 16), BODY),
        (tube([(0, 0, 0.56), (0.31, 0, 0.56), (0.31, 0, 0.80)], 0.075, 12), BODY),
        (tube([(0, 0, 0.48), (-0.31, 0, 0.48), (-0.31, 0, 0.68)], 0.075, 12), BODY),
    ]


def _teapot() -> list[Part]:
    spout = [(0.25, 0, 0.2), (0.42, 0, 0.28), (0.50, 0, 0.46), (0.60, 0, 0.52)]
    return [
        (ball(0.36, (0, 0, 0.3), squash=(1, 1, 0.83)), BODY),
        (lathe([(0.2, 0), (0.2, 0.06)]), BODY),
        (lathe([(0, 0.55), (0.2, 0.55), (0.17, 0.6), (0, 0.64)]), GREY),
        (ball(0.055, (0, 0, 0.68), rings=6), GREY),
        (tube(spout, 0.06), BODY),
        (tube(arc((-0.32, 0.32), 0.19, 75, 285), 0.045), BODY),
    ]


def _castle() -> list[Part]:
    parts = [
        (box((-0.4, 0.4), (-0.2, 0.2), (0, 0.45)), BODY),
        (box((-0.11, 0.11), (-0.23, -0.2), (0, 0.26)), DARK),
        *((box((x - 0.06, x + 0.06), (-0.2, 0.2), (0.45, 0.54)), BODY) for x in (-0.14, 0.14)),
    ]
    for x in (-0.42, 0.42):
        parts.append((box((x - 0.15, x + 0.15), (-0.25, 0.25), (0, 0.68)), BODY))
        for y in (-0.25, 0.13):
            for corner in (x - 0.15, x + 0.05):
                merlon = box((corner, corner + 0.1), (y, y + 0.12), (0.68, 0.8))
                parts.append((merlon, BODY))
        parts.append((box((x - 0.04, x + 0.04), (-0.26, -0.25), (0.42, 0.56)), DARK))
    return parts


_KINDS: dict[str, Kind] = {
    "mug": Kind(_mug, 0.88, turn=40, flip=True),
    "lamp": Kind(_lamp, 1.0, turn=180),
    "house": Kind(_house, 0.95),
    "tree": Kind(_tree, 1.05, turn=180),
    "snowman": Kind(_snowman, 1.1),
    "bottle": Kind(_bottle, turn=180),
    "sign": Kind(_sign, 1.3, turn=15),
    "car": Kind(_car, 1.12, turn=35, flip=True),
    "chair": Kind(_chair, turn=50),
    "mushroom": Kind(_mushroom, 0.9, turn=180),
    "rocket": Kind(_rocket, 1.1),
    "ball": Kind(_football, 0.75, turn=180),
    "gift": Kind(_gift, 0.8, turn=45),
    "robot": Kind(_robot, 1.05),
    "boat": Kind(_boat, turn=30, flip=True),
    "hat": Kind(_hat, 0.85, turn=180),
    "duck": Kind(_duck, 0.95, turn=40, flip=True),
    "cactus": Kind(_cactus, turn=35),
    "teapot": Kind(_teapot, turn=35, flip=True),
    "castle": Kind(_castle, 1.05, turn=30),
}
KINDS = tuple(_KINDS)


def kind(name: str) -> Kind:
    """How the named kind is built and turned."""
    return _KINDS[name]
