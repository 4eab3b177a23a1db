"""One look for every plot of the book: colour-blind-safe colours on a white ground.

The palette is Okabe and Ito's, in an order that also tells the book's roles apart. A plot is drawn
once and shown on light and dark pages alike, so its ground is always white.
"""

from __future__ import annotations

IMAGE, TEXT, BOTH = "#0072B2", "#D55E00", "#7B3294"  # image only, text only, fused
NEUTRAL = "#5F6B73"  # baselines, chance, shuffled controls
CYCLE = (IMAGE, TEXT, BOTH, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def use_style() -> None:
    """Set matplotlib's defaults for the rest of the session."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": mpl.cycler(color=CYCLE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "grid.color": "#E3E8EB",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 2.0,
            "lines.markersize": 5.0,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "image.cmap": "cividis",
        }
    )
