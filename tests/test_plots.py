"""The plotting style: readable on white, and different colours look different in grey too."""

from __future__ import annotations

import pytest

from mmfusion_lib import plots

matplotlib = pytest.importorskip("matplotlib", reason="the extra `book` is not installed")


def luminance(colour: str) -> float:
    """Relative luminance of ``#RRGGBB``, 0 to 1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("colour", [plots.IMAGE, plots.TEXT, plots.BOTH, plots.NEUTRAL])
def test_role_colours_stand_out_from_white(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 3.0  # WCAG: graphics want 3:1


def test_style_sets_a_white_ground_and_the_cycle():
    with matplotlib.rc_context():
        plots.use_style()
        assert matplotlib.rcParams["figure.facecolor"] == "white"
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        assert cycle == list(plots.CYCLE) and len(set(cycle)) == 8
