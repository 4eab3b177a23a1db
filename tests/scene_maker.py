"""Scene graphs without a renderer: objects at random, boxes by a simple perspective."""

from __future__ import annotations

import json
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


GRAPHS = [
    graph(thing("mug", "red"), name="test-000000"),
    graph(thing("ball", "blue"), name="test-000001"),
]
ASKED = [  # of the second scene, then of the first
    {"scene": "test-000001", "index": 1, "question": "Which?", "answer": "blue", "type": "colour"},
    {"scene": "test-000000", "index": 0, "question": "What?", "answer": "mug", "type": "kind"},
]


def serve_two_scenes(monkeypatch, pictures: dict) -> None:
    """``scene_texts.scene_items`` reads ``GRAPHS`` and ``ASKED``, with these pictures, from now on."""
    from mmfusion_lib import scene_texts

    table = {"graph": [json.dumps(g) for g in GRAPHS], "id": [g["id"] for g in GRAPHS]}
    monkeypatch.setattr(scene_texts.scenes, "load", lambda split, count: table)
    monkeypatch.setattr(scene_texts.scene_batch, "batch", lambda *given, **options: pictures)
    monkeypatch.setattr(scene_texts.scene_tasks, "vqa", lambda graphs, limit: ASKED)
