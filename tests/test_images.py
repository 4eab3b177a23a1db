"""Opening pictures of every kind, and turning them into tensors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmfusion_lib.data.images import ImageTransform, augment, open_image
from mmfusion_lib.errors import InputError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_opens_path_bytes_file_pil_and_row(tmp_path):
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    data = path.read_bytes()
    sources = [path, str(path), data, io.BytesIO(data), image, {"bytes": data, "path": None}]
    for source in [*sources, {"bytes": None, "path": str(path)}]:
        opened = open_image(source)
        assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (3, 2), (10, 20, 30))


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        # Half transparent black on white: 255 x (1 - 128 / 255) = 127.
        (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        # 16 bits: 25700 / 257 = 100.
        (Image.fromarray(np.full((2, 2), 25700, np.uint16)), (100, 100, 100)),
    ],
)
def test_any_mode_becomes_rgb(image, expected):
    assert open_image(image).getpixel((0, 0)) == expected


def test_palette_transparency_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    opened = open_image(encoded(image, transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    assert open_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)


def test_bad_files_are_named(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    bad = tmp_path / "bad.jpg"
    for content in (
        whole[: len(whole) // 2],
        b"not an image",
        b"",
        encoded(Image.new("L", (9, 9)))[:40],
    ):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.jpg"):
            open_image(bad)
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="row 3"):
        open_image(b"", "row 3")
    monkeypatch.setattr("mmfusion_lib.data.images.MAX_PIXELS", 63 * 64)
    with pytest.raises(InputError, match="pixels"):
        open_image(whole)


def test_transform_values_by_hand():
    # Columns 0, 255 / 5 x k: no resizing at size 2, so x / 255 = 0 and 1; (0 - 0.5) / 0.25 = -2 and
    # (1 - 0.5) / 0.25 = 2 in red; mean 0, std 1 leave 0 and 1 in green; blue is (x - 1) / 2.
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]] * 2, np.uint8))
    out = ImageTransform(2, (0.5, 0, 1), (0.25, 1, 2))(image)
    assert out.dtype == torch.float32 and out.shape == (3, 2, 2)
    expected = torch.tensor([[[-2.0, 2], [-2, 2]], [[0.0, 1], [0, 1]], [[-0.5, 0], [-0.5, 0]]])
    torch.testing.assert_close(out, expected)


def test_squash_keeps_all_and_crop_takes_the_centre():
    # Four columns of 2 x 4 pixels: red, green, green, blue.
    image = Image.new("RGB", (4, 2), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 1, 2))
    image.paste((0, 0, 255), (3, 0, 4, 2))
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    cropped = ImageTransform(2, crop=True, **plain)(image)
    torch.testing.assert_close(cropped, torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 2, 2))
    squashed = ImageTransform(2, crop=False, **plain)(image)
    assert squashed[0, 0, 0] > 0.3 and squashed[2, 0, 1] > 0.3  # red left, blue right
    # Antialiased: one pixel of a fine checkerboard is its mean grey, not black or white.
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(ImageTransform(1, **plain)(board) - 0.5).max() < 0.02


def test_digest_names_every_field():
    base = ImageTransform(8, (0, 0, 0), (1, 1, 1))
    others = [
        ImageTransform(9, (0, 0, 0), (1, 1, 1)),
        ImageTransform(8, (0, 0, 0.1), (1, 1, 1)),
        ImageTransform(8, (0, 0, 0), (1, 1, 2)),
        ImageTransform(8, (0, 0, 0), (1, 1, 1), crop=True),
    ]
    assert len({t.digest for t in [base, *others]}) == 5
    assert ImageTransform(8, [0, 0, 0], [1, 1, 1]).digest == base.digest
    for wrong in ((0, (0, 0, 0), (1, 1, 1)), (8, (0, 0), (1, 1, 1)), (8, (0, 0, 0), (1, 0, 1))):
        with pytest.raises(InputError):
            ImageTransform(*wrong)


def test_augment_is_seeded_and_keeps_size():
    ramp = torch.arange(48.0).reshape(1, 6, 8).expand(3, 6, 8)
    picture = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3))

    def draw(seed, image=ramp, **options):
        return augment(image, torch.Generator().manual_seed(seed), **options)

    assert draw(0).shape == (3, 6, 8) and torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert (
        draw(0, picture).size == (8, 6) and draw(0, picture).tobytes() == draw(0, picture).tobytes()
    )
    whole = {"area": (1.0, 1.0), "ratio": (8 / 6, 8 / 6)}  # a crop that keeps everything
    torch.testing.assert_close(draw(0, flip=1.0, **whole), ramp.flip(-1))
    torch.testing.assert_close(draw(0, flip=0.0, **whole), ramp)
