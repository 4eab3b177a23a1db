"""Questions after captions: the items, what trains, what is kept, and the recipe's summary."""

from __future__ import annotations

import pytest
import torch
from scene_maker import serve_two_scenes
from torch.utils.data import default_collate

from mmfusion_lib import prismer_training, scene_captioner
from mmfusion_lib.recipes import prismer_answers as recipe
from mmfusion_lib.recipes import prismer_captions

CAPTIONS = prismer_captions.SMOKE | {
    "ways": {"prismerz": recipe.PAIR["prismerz"]},
    "count": {"train": 2, "validation": 2, "test": 2},
    "questions": {"train": 5, "validation": 0, "test": 5},
    "share": 1.0,
    "train": {**prismer_captions.SMOKE["train"], "batch_size": 2},
}
S = recipe.LAB | {
    "seeds": [0],
    "captions": CAPTIONS,
    "share": 1.0,
    "train": {**recipe.LAB["train"], "epochs": 1, "batch_size": 2, "precision": "no"},
}


@pytest.fixture
def two_scenes(monkeypatch, minilm, dinov2):
    """Two made scenes in place of rendered ones, and a small captioner."""
    pictures = {"rgb": torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))}
    serve_two_scenes(monkeypatch, pictures)
    sizes = {**scene_captioner.SIZES, "image": 1, "text": 1, "adaptor_bottleneck": 8}
    monkeypatch.setattr(scene_captioner, "SIZES", sizes)
    prismer_captions._loaded.cache_clear()
    yield
    prismer_captions._loaded.cache_clear()


def test_the_loss_on_kept_tokens_is_that_on_pictures(two_scenes):
    items, graphs, _ = prismer_captions.data(CAPTIONS, "train", recipe.PAIR["prismerz"])
    model = scene_captioner.build((), 0).eval()
    latents = recipe.encode(CAPTIONS, model, items, len(graphs))
    questions = items.take([2, 3])
    asked = recipe.Asked(questions, latents)
    kept = default_collate([asked[i] for i in range(len(asked))])
    assert "experts" not in kept and len(asked) == 2
    # The first question is of the second scene.
    assert torch.equal(kept["latents"][0], latents[1].float())
    whole = default_collate([questions[i] for i in range(2)])
    with torch.no_grad():
        expected = prismer_training.objective(model, whole)
        assert recipe.objective(model, kept) == pytest.approx(float(expected), rel=1e-2)


def test_a_unit_trains_the_decoder_and_keeps_its_captioner(two_scenes, cache, monkeypatch):
    before = recipe.captioner(CAPTIONS, "prismerz", 0)
    trained = []
    monkeypatch.setattr(prismer_captions, "trained", lambda *given: trained.append(given))
    fitted = {}
    fit = recipe.train.fit
    monkeypatch.setattr(
        recipe.train, "fit", lambda model, *rest: fitted.update(model=model) or fit(model, *rest)
    )
    unit = recipe.run_unit(S, "0-prismerz")
    assert not trained  # the captioner was at hand
    assert unit["steps"] == 1 and len(unit["before"]) == len(unit["after"]) == 2
    was, now = before.state_dict(), fitted["model"].state_dict()
    moved = {name for name in was if not torch.equal(was[name], now[name].cpu())}
    assert moved and all(name.startswith("decoder") for name in moved)


def test_another_training_is_another_captioner(two_scenes, cache, monkeypatch):
    model = scene_captioner.build((), 0)
    asked = []
    monkeypatch.setattr(
        prismer_captions, "trained", lambda s, *given: (asked.append(given) or model, None)
    )
    other = CAPTIONS | {"train": {**CAPTIONS["train"], "lr": 1e-4}}
    for captions, seed in ((CAPTIONS, 0), (CAPTIONS, 0), (CAPTIONS, 1), (other, 0)):
        recipe.captioner(captions, "prismerz", seed)
    assert asked == [("prismerz", 0), ("prismerz", 1), ("prismerz", 0)]


def test_the_summary_follows_from_the_units(two_scenes):
    captions = CAPTIONS | {"ways": recipe.PAIR}
    right, wrong = ["blue", "mug"], ["red", "mug"]
    unit = {"trainable": 5, "seconds": 1.0, "data_wait_share": 0.0, "samples_per_second": 8.0}
    done = {
        "0-prismer": unit | {"before": wrong, "after": right},
        "0-prismerz": unit | {"before": wrong, "after": wrong},
    }
    found = recipe.summarise(S | {"captions": captions}, done)
    results = {name: value["mean"] for name, value in found["results"].items()}
    assert results["prismer-before"] == results["prismerz-after"] == 0.5
    assert results["prismer-after"] == results["prismer-after-colour"] == 1
    assert results["prismerz-after-colour"] == 0 and results["prismerz-after-kind"] == 1
    assert results["question alone-kind"] == 1  # each wording is asked once
    gains = {name: each["difference"] for name, each in found["comparisons"].items()}
    assert gains == {
        "prismer: after - before": 0.5,
        "prismerz: after - before": 0.0,
        "after: prismer - prismerz": 0.5,
    }
