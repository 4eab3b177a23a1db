"""Ray casting: depth and extents worked out by hand, normals, edges, shadows, colours."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("trimesh", reason="scenes need trimesh: pip install mmfusion_lib[scenes]")
pytest.importorskip("embreex", reason="scenes need embreex: pip install mmfusion_lib[scenes]")

from mmfusion_lib.data import scene_objects, scene_render, scene_shade
from mmfusion_lib.data.scene_objects import COLOURS, KINDS, SECOND, WORDS
from mmfusion_lib.data.scene_render import Camera, Room, Solid

LIGHT = np.array([-1.0, -1.0, 2.0]) / 6**0.5
GREY = np.float32([160, 160, 160])


def room(light=LIGHT) -> Room:
    return Room("stone", GREY, "plaster", GREY, wall_y=1.0, light=light)


# A sign of scale 1 is 1.3 times its plan: its board spans x = +-0.65 and z = 0.442 to 1.04 in the
# plane y = -0.052. The camera looks straight at its middle (z = 0.741) from 2 m before it.
SIGN = Solid("sign", scale=1.0, word="open")
LEVEL = Camera.look_at((0, -2.052, 0.741), (0, 0, 0.741), focal=0.98)


def test_a_board_parallel_to_the_image_has_one_depth_and_the_extent_of_the_pinhole_formula():
    found = scene_render.labels(LEVEL, room(), [SIGN], size=100)
    board = np.abs(found.depth - 2) < 1e-5
    # Half a width: 0.98 * 0.65 / 2 = 0.3185, that is 31.85 pixels from column 50: centres 18.5 to
    # 81.5. Half a height: 0.98 * 0.299 / 2 = 0.1465: centres 35.5 to 64.5.
    expected = np.zeros((100, 100), bool)
    expected[35:65, 18:82] = True
    np.testing.assert_array_equal(board, expected)
    np.testing.assert_allclose(found.normal[board], np.float32([[0, 0, 1]]).repeat(30 * 64, 0))
    assert (found.instances[board] == 0).all()


def test_depth_of_table_and_wall():
    found = scene_render.labels(LEVEL, room(), [SIGN], size=100)
    # Top row: the wall, 1 + 2.052 m before the camera, whatever the column.
    np.testing.assert_allclose(found.depth[0], 3.052, rtol=1e-6)
    # Bottom row, corner: 49.5 pixels under the axis, 0.741 m above the table.
    assert found.depth[99, 0] == pytest.approx(0.741 * 0.98 / 0.495, rel=1e-6)
    assert found.normal[0, 0] == pytest.approx([0, 0, 1])
    assert found.normal[99, 0] == pytest.approx([0, 1, 0])
    assert found.instances[0, 0] == found.instances[99, 0] == scene_render.NOTHING


def test_projection_inverts_the_rays():
    camera = Camera.look_at((0.3, -1.2, 0.5), (0, 0, 0.1), focal=1.7)
    points = camera.position + 1.9 * camera.rays(5).reshape(-1, 3)  # depth 1.9 in a 5 x 5 image
    centres = (np.arange(5) + 0.5) / 5
    expected = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    np.testing.assert_allclose(camera.project(points), expected, atol=1e-6)
    part = camera.rays(5, (1, 2, 3, 5))
    np.testing.assert_array_equal(part, camera.rays(5)[2:5, 1:3])


def test_the_nearer_object_wins_and_the_hidden_one_keeps_its_count():
    camera = Camera.look_at((0, -1.2, 0.1), (0, 0, 0.1), focal=1.7)
    near, far = Solid("ball", scale=0.2, position=(0, 0)), Solid("ball", position=(0, 0.5))
    alone = scene_render.labels(camera, room(), [far], 64)
    both = scene_render.labels(camera, room(), [far, near], 64)
    assert (both.instances == 0).sum() < (alone.instances == 0).sum() == both.alone[0]
    assert (both.instances == 1).sum() == both.alone[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_on_the_table_and_its_normals_are_units_that_face_the_camera(kind):
    shape = scene_objects.shape(kind)
    low, high = scene_objects.extent(kind)
    assert low[2] == pytest.approx(0, abs=1e-9)
    assert max(high[0] - low[0], high[2]) == pytest.approx(scene_objects.kind(kind).stretch)
    assert shape.faces.max() < len(shape.vertices) and len(shape.faces) <= 2300
    camera = Camera.look_at((0.2, -1.2, 0.5), (0, 0, 0.1), focal=1.7)
    found = scene_render.labels(camera, room(), [Solid(kind, turn=0.4, word="open")], 48)
    np.testing.assert_allclose(np.linalg.norm(found.normal, axis=-1), 1, atol=1e-5)
    view = camera.rays(48) @ camera.axes.T
    assert ((found.normal * view).sum(-1) <= 0).all()
    assert (found.instances == 0).sum() > 40


def test_edges_are_outlines_and_creases_not_the_slanting_table():
    camera = Camera.look_at((0, -1.2, 0.3), (0, 0, 0.1), focal=1.7)
    found = scene_render.labels(camera, room(), [Solid("ball", scale=0.3)], 64)
    edges = scene_render.edges(camera, found) > 0
    ball = found.instances == 0
    # The outline of a disc of n pixels is about 2 * pi * radius = 3.5 * sqrt(n) pixels long.
    near = np.zeros_like(ball)
    near[1:-1, 1:-1] = ball[1:-1, 1:-1] | ball[2:, 1:-1] | ball[1:-1, 2:]
    assert 0.8 < edges[near].sum() / (3.5 * ball.sum() ** 0.5) < 1.4
    table = ~near & (found.normal[..., 1] > 0.5)
    corner = np.zeros_like(table)  # where table and wall meet there is a crease
    corner[:-1] = (found.normal[1:, :, 1] > 0.5) & (found.normal[:-1, :, 1] < 0.5)
    assert not edges[table].any() and edges[corner & ~near].all()


def test_a_step_of_more_than_15_mm_within_one_object_is_an_edge():
    for step, expected in ((0.02, 255), (0.01, 0)):
        depth = np.ones((4, 4), np.float32)
        depth[:, 2:] += step  # two planes parallel to the image, one behind the other
        normal = np.tile(np.float32([0, 0, 1]), (4, 4, 1))
        found = scene_render.Labels(depth, normal, np.zeros((4, 4), np.uint8), np.array([16]))
        edges = scene_render.edges(LEVEL, found)
        assert (edges[:, 1] == expected).all() and edges.sum() == 4 * expected


def test_shadows_fall_where_geometry_says():
    # A ball of 0.75 * 0.3 m: radius 0.1125, centre at that height. Light at 45 degrees from the
    # left. The ray from (x, 0, 0) passes the centre at |x - 0.1125| / sqrt(2).
    ball = Solid("ball", scale=0.3)
    tracer = scene_render.tracer_of(ball.vertices, ball.faces)
    points = np.zeros((4, 3), np.float32)
    points[:, 0] = [-0.2, 0.2, 0.26, 0.29]  # at 0.221, 0.062, 0.104 and 0.126 of the centre
    up = np.tile(np.float32([0, 0, 1]), (4, 1))
    light = np.array([-1.0, 0, 1]) / 2**0.5
    np.testing.assert_array_equal(scene_shade._lit(tracer, points, up, light), [1, 0, 0, 1])


def test_a_shadow_is_darker_than_the_lit_table():
    camera = Camera.look_at((0, -1.2, 0.5), (0, 0, 0), focal=1.7)
    ball = [Solid("ball", scale=0.3)]
    left = scene_shade.picture(camera, room(np.array([-1, 0, 1]) / 2**0.5), ball, 64)
    right = scene_shade.picture(camera, room(np.array([1, 0, 1]) / 2**0.5), ball, 64)
    column, row = (camera.project(np.array([[0.2, 0, 0]]))[0] * 64).astype(int)
    assert left[row, column].mean() < 0.8 * right[row, column].mean()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_object_shows_its_colour_under_light_and_shade(colour):
    camera = Camera.look_at((0, -1.2, 0.4), (0, 0, 0.1), focal=1.7)
    ball = [Solid("ball", colour, scale=0.4)]
    own = scene_render.labels(camera, room(), ball, 64).instances == 0
    seen = np.median(scene_shade.picture(camera, room(), ball, 64)[own], 0)

    def error(name):  # up to brightness
        target = np.array(COLOURS[name], float)
        return np.linalg.norm(seen - np.clip(seen @ target / (target @ target), 0.5, 1.15) * target)

    assert min(COLOURS, key=error) == colour


@pytest.mark.parametrize("texture, least, most", [("striped", 0.3, 0.5), ("checked", 0.4, 0.6)])
def test_a_texture_mixes_two_colours_and_leaves_fixed_parts_alone(texture, least, most):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 3)).astype(np.float32)
    body = np.zeros(4000, int)  # material 0
    painted = scene_shade._paint(Solid("mug", "red", texture), body, points)
    second = (painted == np.float32(SECOND["red"])).all(1)
    assert least < second.mean() < most
    assert (painted[~second] == np.float32(COLOURS["red"])).all()
    wheels = scene_shade._paint(Solid("car", "red", texture), body + scene_objects.DARK, points)
    assert (wheels == np.float32(scene_objects.MATERIALS[scene_objects.DARK])).all()


def test_a_sign_shows_its_word_on_its_front_only():
    assert len(set(WORDS)) == len(WORDS) == 24
    signs = [Solid("sign", "blue", scale=1.0, word=word) for word in ("open", "milk")]
    pictures = [scene_shade.picture(LEVEL, room(), [sign], 100) for sign in signs]
    white = [(picture[35:65, 18:82] > 140).all(-1) for picture in pictures]
    assert all(0.15 < ink.mean() < 0.6 for ink in white)
    assert (white[0] != white[1]).mean() > 0.1
    behind = Solid("sign", "blue", scale=1.0, turn=np.pi, word="open")
    back = scene_shade.picture(LEVEL, room(), [behind], 100)[35:65, 18:82]
    assert not (back > 140).all(-1).any()
