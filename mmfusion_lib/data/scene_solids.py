"""Simple solids, as trimesh meshes, of which the kinds of object are composed.

Coordinates are those of a kind: x to the right, y away from the viewer, z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import trimesh


def missing() -> InputError:
    """What to say when the ray tracer is not installed."""
    return InputError(
        "Scenes need the packages trimesh and embreex: pip install mmfusion_lib[scenes]."
    )


def creation():
    """``trimesh.creation``, imported when the first mesh is built."""
    try:
        from trimesh import creation
    except ImportError as error:
        raise missing() from error
    return creation


def box(x, y, z) -> trimesh.Trimesh:
    """A box from its extents along the axes, each a pair (low, high)."""
    return creation().box(bounds=np.array([x, y, z], dtype=float).T)


def lathe(profile, at=(0.0, 0.0, 0.0), sections: int = 28) -> trimesh.Trimesh:
    """A surface of revolution about the vertical line through ``at``; ``profile``: (r, z) pairs."""
    mesh = creation().revolve(np.array(profile, dtype=float), sections=sections)
    mesh.apply_translation(at)
    return mesh


def ball(radius: float, at, squash=(1.0, 1.0, 1.0), rings: int = 12) -> trimesh.Trimesh:
    """A ball, or an ellipsoid: ``squash`` scales it along the axes."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    profile = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    profile[[0, -1], 0] = 0
    mesh = lathe(profile, sections=2 * rings)
    mesh.apply_scale(squash)
    mesh.apply_translation(at)
    return mesh


def tube(points: Sequence, radius: float, sections: int = 10) -> trimesh.Trimesh:
    """A round rod along a broken line, with rounded joints."""
    import trimesh

    rods = [
        creation().cylinder(radius=radius, segment=pair, sections=sections)
        for pair in pairwise(points)
    ]
    return trimesh.util.concatenate(rods + [ball(radius, p, rings=4) for p in points])


def slab(outline, depth: float, axis: str = "y", at: float = 0.0) -> trimesh.Trimesh:
    """A convex outline in (x, z), thickened to ``depth`` along y about ``at`` (or (y, z), x)."""
    import trimesh

    n = len(outline)
    flat = np.array(outline, dtype=float)
    ends = [np.insert(flat, 1, at + side * depth / 2, axis=1) for side in (-1, 1)]
    fan = [[0, i, i + 1] for i in range(1, n - 1)]
    sides = [[i, (i + 1) % n, n + i] for i in range(n)]
    sides += [[(i + 1) % n, n + (i + 1) % n, n + i] for i in range(n)]
    faces = np.array(fan + [[n + c, n + b, n + a] for a, b, c in fan] + sides)
    vertices = np.concatenate(ends)
    return trimesh.Trimesh(
        vertices[:, [1, 0, 2]] if axis == "x" else vertices, faces, process=False
    )


def arc(centre, radius: float, start: float, stop: float, steps: int = 7) -> list[tuple]:
    """Points on a circle in the (x, z) plane, angles in degrees."""
    angles = np.radians(np.linspace(start, stop, steps))
    return [(centre[0] + radius * np.cos(a), 0.0, centre[1] + radius * np.sin(a)) for a in angles]
