"""Scene graphs without a renderer: objects at random, boxes by a simple perspective."""

from __future__ import annotations

import random

from mmfusion_lib.data.scene_objects import COLOURS, KINDS, TEXTURES, WORDS
from mmfusion_lib.data.scenes import HELD_OUT

COLOURS = tuple(COLOURS)


def thing(kind="mug", colour="red", x=0.5, distance=2.0, **fields) -> dict:
    """One object: ``x`` is the centre's place across the picture, 0 to 1."""
    half = 0.25 / distance
    bottom = 0.4 + 0.8 / distance
    box = [round(112 * v) for v in (x - half, bottom - 2 * half, x + half, bottom)]
    item = {
        "id": 0,
        "kind": kind,
        "colour": colour,
        "texture": "plain",
        "size": "large",
        "word": "open" if kind == "sign" else None,
        "position": [x, distance],
        "distance": distance,
        "box": box,
        "pixels": (box[2] - box[0]) * (box[3] - box[1]),
        "visible": 1.0,
    }
    return item | fields


def graph(*things: dict, name: str = "test-000000") -> dict:
    """A scene of the given objects."""
    return {
        "id": name,
        "split": name.split("-")[0],
        "seed": int(name.split("-")[1]),
        "size": 112,
        "surface": "wood",
        "wall": "bricks",
        "light": "left",
        "objects": [{**item, "id": number} for number, item in enumerate(things)],
    }


def make_graphs(split: str, count: int) -> list[dict]:
    """Scenes of 2 to 5 objects; held-out pairs in every test scene and in no other."""
    rng = random.Random(f"made-{split}")
    graphs = []
    while len(graphs) < count:
        things = []
        for _ in range(rng.randint(2, 5)):
            repeat = things and rng.random() < 0.25
            kind = rng.choice(things)["kind"] if repeat else rng.choice(KINDS)
            colours = [c for c in COLOURS if split == "test" or (c, kind) not in HELD_OUT]
            things.append(
                thing(
                    kind,
                    rng.choice(colours),
                    rng.uniform(0.15, 0.85),
                    rng.uniform(1.0, 1.7),
                    texture=rng.choice(TEXTURES),
                    size=rng.choice(("small", "large")),
                    visible=rng.choice((0.3, 0.7, 1.0, 1.0, 1.0, 1.0)),
                )
            )
        if split == "test":
            things[0]["colour"], things[0]["kind"] = rng.choice(sorted(HELD_OUT))
        for item in things:
            sign = item["kind"] == "sign"
            item["word"] = rng.choice(WORDS) if sign else None
            item["texture"] = "plain" if sign else item["texture"]
        graphs.append(graph(*things, name=f"{split}-{len(graphs):06d}"))
    return graphs
