"""Ray casting: from placed meshes and a camera to exact labels.

World coordinates are metres: x to the right, y away from the viewer, z up; the table is the plane
z = 0 and the wall the plane y = ``Room.wall_y``. Camera coordinates are x right, y up, z towards
the viewer, so a surface that faces the camera has the normal (0, 0, 1).

Objects are traced by embree; the table and the wall are planes, solved exactly. Labels are traced
through pixel centres, one ray each, so no label mixes two surfaces. ``scene_shade`` paints the
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from . import scene_objects
from .scene_solids import missing

NOTHING = 255
_FAR = np.float32(1e30)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    ``position`` (3,) metres; ``axes`` (3, 3): its rows are the camera's right, up and backward
    directions in the world; ``focal`` is the focal length in image widths.
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float

    @classmethod
    def look_at(cls, position, target, focal: float) -> Camera:
        """A level camera at ``position`` whose optical axis passes through ``target``."""
        position = np.asarray(position, dtype=np.float64)
        back = position - np.asarray(target, dtype=np.float64)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        return cls(position, np.stack([right, np.cross(back, right), back]), focal)

    def rays(self, size: int, window: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Directions (h, w, 3) float32 through pixel centres of a size x size image.

        ``window`` (x0, y0, x1, y1) takes a part of it. A ray advances by 1 along the optical axis,
        so the length along a ray IS the depth.
        """
        x0, y0, x1, y1 = window or (0, 0, size, size)
        steps = ((np.arange(size) + 0.5) / size - 0.5) / self.focal
        x, y = np.meshgrid(steps[x0:x1], -steps[y0:y1])  # (h, w) each
        rays = np.stack([x, y, -np.ones_like(x)], -1)  # (h, w, 3)
        return (rays @ self.axes).astype(np.float32)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Image coordinates (N, 2) of world points (N, 3): (0, 0) top left, (1, 1) bottom right."""
        x, y, z = ((points - self.position) @ self.axes.T).T
        return np.stack([0.5 - self.focal * x / z, 0.5 + self.focal * y / z], -1)


@dataclass(frozen=True)
class Room:
    """What is not an object: the table, the wall and the light (a unit vector towards it)."""

    surface: str
    surface_tint: np.ndarray
    wall: str
    wall_tint: np.ndarray
    wall_y: float
    light: np.ndarray


class Solid:
    """One object placed in the world, and its own ray tracer.

    Args:
        kind, colour, texture, word: what it is (the word only on a sign).
        scale: its size in metres; position: (x, y) on the table; turn: about z, in radians.
    """

    def __init__(
        self, kind, colour="red", texture="plain", scale=0.2, position=(0, 0), turn=0.0, word=None
    ):
        shape = scene_objects.shape(kind)
        cos, sin = np.cos(turn), np.sin(turn)
        self.kind, self.colour, self.texture, self.word = kind, colour, texture, word
        self.scale = scale
        self.rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        self.origin = np.array([position[0], position[1], 0.0])
        vertices = shape.vertices @ (scale * self.rotation.T) + self.origin
        self.vertices = vertices.astype(np.float32)  # (V, 3)
        self.faces, self.materials = shape.faces, shape.materials

    def trace(self, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Trace this object alone, through the pixel centres of its window of the image.

        Returns:
            depth (size, size) float32, 1e30 where the object is not, and face (size, size), -1
            there.
        """
        spots = np.clip(camera.project(self.vertices) * size, 0, size)
        (x0, y0), (x1, y1) = np.floor(spots.min(0)).astype(int), np.ceil(spots.max(0)).astype(int)
        depth = np.full((size, size), _FAR)
        face = np.full((size, size), -1)
        rays = camera.rays(size, (x0, y0, x1, y1))  # (h, w, 3)
        # The mesh stays as it is; camera and rays move into its coordinates. Lengths along the
        # rays, and so depths, do not change.
        rays = (rays.reshape(-1, 3) @ (self.rotation / self.scale)).astype(np.float32)  # (h * w, 3)
        tracer, _ = _unit(self.kind)
        hit, length = first_hits(tracer, self.local(camera.position), rays)
        depth[y0:y1, x0:x1] = length.reshape(y1 - y0, x1 - x0)
        face[y0:y1, x0:x1] = hit.reshape(y1 - y0, x1 - x0)
        return depth, face

    def normals(self) -> np.ndarray:
        """World normals (F, 3) of the faces, of either sign."""
        return _unit(self.kind)[1] @ self.rotation.T.astype(np.float32)

    def local(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) in the coordinates of the kind's unit mesh."""
        return ((points - self.origin) @ self.rotation / self.scale).astype(np.float32)


@dataclass
class Labels:
    """What the camera sees at pixel centres.

    ``depth`` (H, W) float32 metres along the optical axis; ``normal`` (H, W, 3) float32, unit, in
    camera space, of the mesh's flat faces; ``instances`` (H, W) uint8, 255 for table and wall;
    ``alone`` (K,) the pixels that each object would have if no other stood before it.
    """

    depth: np.ndarray
    normal: np.ndarray
    instances: np.ndarray
    alone: np.ndarray


@cache
def _unit(kind: str) -> tuple:
    """The tracer and the face normals (F, 3) of a kind's unit mesh, made once in a process."""
    shape = scene_objects.shape(kind)
    vertices = shape.vertices.astype(np.float32)
    return tracer_of(vertices, shape.faces), face_normals(vertices, shape.faces)


def tracer_of(vertices: np.ndarray, faces: np.ndarray):
    """An embree scene that holds one triangle mesh."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise missing() from error
    scene = EmbreeScene()
    TriangleMesh(scene, vertices, faces)
    return scene


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products of vectors (..., 3), kept as (..., 1)."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def first_hits(tracer, position: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first face hit (N,), -1 for none, and the length along the ray (N,), 1e30 for none."""
    origins = np.broadcast_to(position.astype(np.float32), rays.shape).copy()
    hit = tracer.run(origins, rays, output=True)
    missed = hit["primID"] < 0
    return np.where(missed, -1, hit["primID"]), np.where(missed, _FAR, hit["tfar"])


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (F, 3) of triangles; their sign is set later, towards the camera."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.sqrt(dot(normal, normal)), np.float32(1e-20))


def background(camera: Camera, room: Room, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (...) of the nearer of table and wall along rays (..., 3), and where it is the wall."""
    with np.errstate(divide="ignore"):
        table = np.float32(-camera.position[2]) / rays[..., 2]
        wall = np.float32(room.wall_y - camera.position[1]) / rays[..., 1]
    table, wall = (np.where(depth > 0, depth, _FAR) for depth in (table, wall))
    return np.minimum(table, wall), wall < table


def visibility(depths: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each of K objects as if it stood alone (K,), and pixels that show (K,).

    ``depths`` holds the depth (H, W) of each object alone, from ``Solid.trace``. Objects stand on
    the table and before the wall, so neither hides them.
    """
    stack = np.stack(depths).reshape(len(depths), -1)  # (K, H * W)
    there = stack < _FAR
    winner = np.where(there.any(0), stack.argmin(0), len(depths))
    return there.sum(1), np.bincount(winner, minlength=len(depths))[: len(depths)]


def labels(camera: Camera, room: Room, solids: list[Solid], size: int) -> Labels:
    """Exact labels at size x size pixel centres: at every pixel the nearest surface wins."""
    rays = camera.rays(size)
    depth, is_wall = background(camera, room, rays)
    normal = np.where(is_wall[..., None], np.float32([0, -1, 0]), np.float32([0, 0, 1]))
    instances = np.full((size, size), NOTHING, np.uint8)
    depths = []
    for number, solid in enumerate(solids):
        own, face = solid.trace(camera, size)
        nearer = own < depth
        depth[nearer], instances[nearer] = own[nearer], number
        normal[nearer] = solid.normals()[face[nearer]]
        depths.append(own)
    axes = camera.axes.T.astype(np.float32)
    normal *= np.where(dot(normal, rays) > 0, np.float32(-1), np.float32(1))
    return Labels(depth, normal @ axes, instances, visibility(depths)[0])


def edges(camera: Camera, found: Labels) -> np.ndarray:
    """Edge map (H, W) uint8, 0 or 255: a new instance, a step of over 15 mm, a crease of over 35°.

    A step is measured off the surface: how far the neighbour lies from this
    pixel's tangent plane, and this pixel from the neighbour's; a table seen at a low angle is
    therefore no edge. Of the two pixels at an edge the left or upper one is marked.
    """
    size = found.depth.shape[0]
    view = camera.rays(size) @ camera.axes.T.astype(np.float32)
    points = found.depth[..., None] * view  # (H, W, 3)
    result = np.zeros((size, size), bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        step = points[there] - points[here]
        off = np.minimum(
            np.abs(dot(step, found.normal[here])), np.abs(dot(step, found.normal[there]))
        )
        crease = dot(found.normal[here], found.normal[there]) < np.cos(np.radians(35))
        other = found.instances[here] != found.instances[there]
        result[here] |= other | ((off > 0.015) | crease)[..., 0]
    return result.astype(np.uint8) * 255
