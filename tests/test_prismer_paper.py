"""Prismer's stages at paper scale, rehearsed on a made tree: one command each, one after the other.

The recipes' own code runs; the model is a tiny one with random weights, and label vectors are made up.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import utils as accelerate_utils
from PIL import Image
from prismer_maker import make_prismer

from mmfusion_lib import InputError, checkpoints, prismer_training, settings, train
from mmfusion_lib.data import coco, scene_tasks, scenes, shard_files
from mmfusion_lib.data.scene_draw import Scene
from mmfusion_lib.encoder_config import CONFIGS, EncoderConfig
from mmfusion_lib.experts.labels import LabelMap, write_labels
from mmfusion_lib.prismer import Prismer
from mmfusion_lib.recipes import prismer_paper as recipes
from mmfusion_lib.recipes import prismer_paper_data as data
from mmfusion_lib.recipes import prismer_paper_score as scoring
from mmfusion_lib.recipes import prismer_paper_start as start
from mmfusion_lib.recipes import prismer_paper_tree
from mmfusion_lib.trainable import read_trainable, trainable_state

ALL = (recipes.PRETRAIN, recipes.COCO, recipes.VQA, recipes.IMAGENET)
IMAGE = EncoderConfig("image", 16, 1, 2, 24, image_size=28, patch_size=14)
TEXT = replace(CONFIGS["minilm-l6"], width=16, depth=1, heads=2, mlp_width=24)
DEPTH = Path("labels/depth/vqav2/train2014/COCO_train2014_000000000001.png")


tokenizer = functools.cache(checkpoints.load_tokenizer)


class Vectors:
    """A label vector for each name, made from its letters."""

    def vectors(self, names):
        rows = [
            torch.tensor([ord(name[i % len(name)]) / 64.0 for i in range(64)]) for name in names
        ]
        return torch.stack(rows)  # K x (64,) -> (K, 64)


def tiny_prismer(name, seed=0, experts=(), image_size=28, **changes) -> Prismer:
    """One layer a side; what is pretrained is the same whatever the seed."""
    return make_prismer(IMAGE, TEXT, tokenizer(), seed=seed, experts=experts, image_size=image_size)


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory, minilm) -> Iterator[Path]:
    """The made tree, a cache of these tests' own but for weights, and a tiny model."""
    root, real = tmp_path_factory.mktemp("made"), settings.cache_root()
    prismer_paper_tree.make(root)
    mine = tmp_path_factory.mktemp("cache")
    for name in ("weights", "wheels", "checked", "scenes"):
        (real / name).mkdir(exist_ok=True)
        (mine / name).symlink_to(real / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_CACHE", str(mine))
        patch.setattr(start, "load_prismer", tiny_prismer)
        patch.setattr(data.prismer_input, "label_table", lambda model: Vectors())
        patch.setattr(prismer_paper_tree, "tree", lambda: root)
        yield root


@pytest.fixture(scope="module")
def done(made) -> dict[str, dict]:
    """What each recipe records of its rehearsal."""
    found = {}
    for recipe in ALL:
        s = smoke(recipe, beams=3 if recipe is recipes.COCO else 1)
        units = {unit: recipe.run_unit(s, unit) for unit in recipe.units(s)}
        found[recipe.name] = recipe.summarise(s, units)
    return found


@pytest.fixture
def tree(tmp_path, monkeypatch, made) -> Path:
    """A copy of the tree as the data root, to break things in."""
    shutil.copytree(made, tmp_path / "data")
    monkeypatch.setenv("MMFUSION_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def smoke(recipe, **changes) -> dict:
    return {**recipe.scales["smoke"], **changes}


def unit(recipe) -> str:
    """The first unit of its rehearsal."""
    return recipe.units(smoke(recipe))[0]


def items(s, root, **changes) -> data.PaperItems:
    """Training items of a recipe's settings."""
    model, _ = start.build(s, 0)
    rows, look = data.training(s, root, 0, *s["shots"] or [0])
    more = {"prompt": s["prompt"], "names": ["first", "second"], "look": look} | changes
    return data.PaperItems(rows, s["task"], model, root / "labels", **more)


# --- one command each ---------------------------------------------------------------------------


def test_each_stage_records_scores_cost_and_a_curve(done):
    captions = {"coco-cider", "coco-bleu4", "coco-rouge", "nocaps-cider", "nocaps-rouge"}
    captions |= {f"nocaps-{domain}-cider" for domain in ("in", "near", "out")}
    # Items: 10 captions of COCO and 3 of the web; 10; 8 answers of train2014 and 1 of Visual Genome;
    # 2 shots of 2 classes. In batches of 4: 3, 2, 2 and 1 steps.
    expected = {
        "prismer-pretrain": (captions, 3),
        "prismer-coco": (captions, 2),
        "prismer-vqa": ({"vqav2-accuracy"}, 2),
        "prismer-imagenet": ({"2-shot-imagenet-accuracy"}, 1),
    }
    for name, (scores, steps) in expected.items():
        label = "2-shot-" if name == "prismer-imagenet" else ""
        cost = {"seconds", "samples-per-second", "data-wait", "peak", "trainable"}
        results = done[name]["results"]
        assert scores | {label + each for each in cost} <= set(results)
        assert all(0 <= results[score]["mean"] <= 10 for score in scores)
        assert done[name]["curves"][f"{label}loss"]["x"] == list(range(1, steps + 1))


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_the_rehearsal_differs_from_paper_scale_in_size_only(recipe):
    paper, quick = recipe.scales["paper"], recipe.scales["smoke"]
    assert paper.keys() == quick.keys()
    kept = ("name", "task", "freeze", "prompt", "sources", "crop", "beams", "labels")
    assert all(paper[key] == quick[key] for key in kept)
    assert len(paper["experts"]) == 6 == len(quick["experts"])
    assert (paper["test_pixels"] == paper["pixels"]) == (quick["test_pixels"] == quick["pixels"])


def test_prismerz_needs_no_labels(tree):
    shutil.rmtree(tree / "labels")
    s = smoke(recipes.COCO, experts=())
    data.label_folder(s, tree)
    part = items(s, tree)
    batch = part.collate([part[0], part[1]])
    assert set(batch["experts"]) == {"rgb"}
    assert prismer_training.objective(start.build(s, 0)[0], batch).isfinite()


def test_a_run_that_was_stopped_goes_on_to_the_same_end(monkeypatch):
    often = {"train": {**smoke(recipes.VQA)["train"], "checkpoint_every": 1}}
    whole = recipes.run_unit(smoke(recipes.VQA, seeds=[7], **often), "0")
    real, calls = prismer_training.objective, []

    def stop_once(model, batch):
        calls.append(1)
        if len(calls) == 4:  # two parts a step: in the second part of step 2
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(prismer_training, "objective", stop_once)
    s = smoke(recipes.VQA, **often)
    with pytest.raises(KeyboardInterrupt):
        recipes.run_unit(s, "0")
    again = recipes.run_unit(s, "0")
    assert len(calls) == 4 + 2  # step 1 was not done again
    assert again["losses"] == whole["losses"] and again["scores"] == whole["scores"]


# --- files for a server -------------------------------------------------------------------------


def test_the_servers_protocol_trains_on_all_and_writes_answers(made, capsys):
    s = smoke(recipes.VQA, protocol="server")
    assert (
        len(data.training(s, made, 0, 0)[0])
        == 16 + 1
        > len(data.training(smoke(recipes.VQA), made, 0, 0)[0])
    )
    found = recipes.run_unit(s, "0")
    assert found["scores"] == {"vqav2-written": 6}
    experts = start.stage_file(s, "prismer-vqa").stem.removeprefix("prismer-vqa-")
    path = settings.cache_root() / f"stages/prismer-vqa-server-{experts}.vqav2.json"
    assert f"6 texts for the server: {path}" in capsys.readouterr().out
    rows = json.loads(path.read_text())
    assert [row["question_id"] for row in rows] == [60, 61, 70, 71, 80, 81]
    assert {row["answer"] for row in rows} <= set(data.vqav2.answer_list(made))
    record = recipes.summarise(s, {"0": found})
    assert record["results"]["vqav2-written"]["mean"] == 6
    assert not [name for name in record["results"] if "accuracy" in name]
    assert path.with_name(f"prismer-vqa-server-{experts}.safetensors").is_file()  # others stay


def test_without_references_captions_of_nocaps_are_written(tree, capsys):
    (tree / data.nocaps.TRUTH).unlink()
    found = recipes.run_unit(smoke(recipes.COCO, made=False, beams=1), "0")
    names = {"coco-cider", "coco-bleu4", "coco-rouge", "nocaps-written"}
    assert found["scores"].keys() == names and found["scores"]["nocaps-written"] == 3
    path = start.stage_file(smoke(recipes.COCO), "prismer-coco").with_suffix(".nocaps.json")
    assert f"3 texts for the server: {path}" in capsys.readouterr().out
    rows = json.loads(path.read_text())
    assert [row["image_id"] for row in rows] == [5, 6, 7] and all(row["caption"] for row in rows)


def test_nocaps_is_scored_by_domain(made, monkeypatch):
    """The two out-of-domain pictures are described as people did, the others by no word of theirs."""
    rows = data.testing(smoke(recipes.COCO), made)["nocaps"]
    truth = [*rows["captions"][:], ["two blue cups", "a cup beside another"]]
    domains = ["out-domain", "in-domain", "near-domain", "out-domain"]
    part = items(smoke(recipes.COCO), made)
    part.data = datasets.Dataset.from_dict({"captions": truth, "domain": domains})
    written = [truth[0][0], "zebra", "zebra", truth[3][0]]
    monkeypatch.setattr(scoring, "_each", lambda *_: written)
    found = dict(scoring.score(smoke(recipes.COCO), None, part, made, None))
    assert [found[f"{domain}rouge"] for domain in ("in-", "near-", "out-", "")] == [0, 0, 1, 0.5]
    assert found["out-cider"] > found["in-cider"] == 0
    assert len(found) == 4 * 3


# --- one stage after the other ------------------------------------------------------------------


def test_a_stage_starts_from_what_an_earlier_one_learnt(done):
    saved = start.stage_file(smoke(recipes.PRETRAIN), "prismer-pretrain")
    learnt, meta = read_trainable(saved)
    assert meta["config"]["freeze"] == "lang_vision" and meta["config"]["pixels"] == 28
    fresh, _ = start.build(smoke(recipes.COCO), 0)
    model, about = start.build(smoke(recipes.COCO, start="prismer-pretrain", pixels=56), 0)
    state = model.state_dict()
    table = "encoder.positions"
    assert all(torch.equal(state[n], v) for n, v in learnt.items() if n != table)
    assert learnt[table].shape == (4, 16) and state[table].shape == (16, 16)  # 28 -> 56 pixels
    assert not torch.equal(
        state["decoder.words.weight"], fresh.state_dict()["decoder.words.weight"]
    )
    assert about["freeze"] == "vision" and model.transform.size == 56
    assert all(p.requires_grad for p in model.decoder.parameters())  # frozen until now
    assert not any(p.requires_grad for p in model.encoder.layers[0].block.parameters())


def test_a_third_stage_starts_from_the_second(done):
    path = str(start.stage_file(smoke(recipes.COCO), "prismer-coco"))
    model, _ = start.build(smoke(recipes.IMAGENET, start=path), 3)
    learnt, _ = read_trainable(path)
    state = trainable_state(model)
    assert learnt.keys() == state.keys()
    assert all(torch.equal(learnt[name], value) for name, value in state.items())


def test_of_few_shots_nothing_is_left_behind(done):
    cache = settings.cache_root()
    assert not any((cache / "training/prismer-imagenet").iterdir())
    assert not list((cache / "stages").glob("prismer-imagenet*"))


def test_only_questions_on_new_pictures_are_scored_after_training_on_captions(made):
    # Scene 4 is of val2014 and in Karpathy's training part; scenes 5 to 7 are in his test part.
    alone = data.testing(smoke(recipes.VQA), made)["vqav2"]
    after = data.testing(smoke(recipes.VQA, start="prismer-pretrain"), made)["vqav2"]
    numbers = [{coco.image_id(path) - 1 for path in part["maps"]} for part in (alone, after)]
    assert numbers == [{4, 5, 6, 7}, {5, 6, 7}]


# --- items --------------------------------------------------------------------------------------


def test_the_prompt_is_read_and_the_text_is_learnt_to_its_end_mark(made):
    part = items(smoke(recipes.COCO), made)
    part.data = [{**part.data[0], "captions": ["a red mug."]}]
    assert part.tokenizer.decode(part[0]["ids"]) == "a picture of a red mug"
    item, prompt = part[0], 4  # [CLS] a picture of
    assert (item["labels"][:prompt] == -100).all()
    assert torch.equal(item["labels"][prompt:], item["ids"][prompt:])
    assert item["ids"][-1] == data.prismer_text.end_id(part.tokenizer)


def test_a_long_text_is_cut_before_its_end_mark(made):
    part = items(smoke(recipes.COCO), made)
    part.data = [{**part.data[0], "captions": ["cat " * 28]}]
    ids = part[0]["ids"]
    assert len(ids) == 30  # published, with [CLS], prompt and end mark
    assert ids[-1] == data.prismer_text.end_id(part.tokenizer)


def test_a_batch_is_padded_behind_with_nothing_to_learn(made):
    part = items(smoke(recipes.VQA), made)
    one, two = part[0], {**part[0], "weight": 0.2}
    batch = part.collate([{**one, "ids": one["ids"][:-1], "labels": one["labels"][:-1]}, two])
    short = len(one["ids"]) - 1
    assert batch["mask"].tolist() == [[1] * short + [0], [1] * (short + 1)]
    assert batch["labels"][0, short:].tolist() == [-100]
    assert batch["weight"].tolist() == pytest.approx([1.0, 0.2])
    loss = prismer_training.objective(start.build(smoke(recipes.VQA), 0)[0], batch)
    assert loss.isfinite()


def test_each_answer_of_a_question_is_an_item_with_its_weight(made):
    rows = datasets.Dataset.from_dict(
        {"answers": [["cat", "dog"], ["red"]], "weights": [[0.7, 0.3], [0.2]], "id": ["a", "b"]}
    )
    part = data.Answers(rows)
    found = [(row["id"], row["answers"], row["weight"]) for row in map(part.__getitem__, range(3))]
    assert found == [("a", ["cat"], 0.7), ("a", ["dog"], 0.3), ("b", ["red"], 0.2)]


def test_training_crops_and_a_test_does_not(made):
    cropped, whole = (
        items(smoke(recipes.COCO), made, crop=[0.5, 1.0]),
        items(smoke(recipes.COCO), made),
    )
    torch.manual_seed(0)
    views = [cropped[0] for _ in range(3)]
    torch.manual_seed(0)
    assert torch.equal(views[0]["rgb"], cropped[0]["rgb"])  # drawn from torch's generator
    assert not torch.equal(views[0]["rgb"], views[1]["rgb"])
    assert torch.equal(whole[0]["rgb"], whole[0]["rgb"])


def test_picture_and_maps_are_cut_alike(made, tmp_path):
    part = items(smoke(recipes.COCO, experts=("depth",)), made, crop=[0.5, 1.0])
    bright = np.zeros((80, 60), np.uint8)
    bright[:40, :30] = 255  # a white corner, and the depth of one
    Image.fromarray(bright).convert("RGB").save(tmp_path / "box.png")
    write_labels(tmp_path, LabelMap("depth", bright), "box.png")
    part.labels = tmp_path
    row = {**part.data[0], "image": {"bytes": None, "path": str(tmp_path / "box.png")}}
    part.data = [{**row, "maps": "box.png"}]
    torch.manual_seed(0)
    for _ in range(5):
        item = part[0]
        white = item["rgb"][0].numpy() > 0  # (28, 28); 0 is a middle grey
        assert (white == (item["maps"]["depth"].map > 127)).mean() > 0.95  # but for its outline


def test_shards_give_the_items_of_the_lists(made):
    s = smoke(recipes.PRETRAIN)
    rows, _ = data.training(s, made, 0, 0)
    shard_files.pack(rows, made / "shards", size=5)
    packed, lists = items({**s, "shards": "shards"}, made), items(s, made)
    assert len(packed) == len(lists) == 13
    for i in (0, 12):
        a, b = packed[i], lists[i]
        assert torch.equal(a["ids"], b["ids"]) and torch.equal(a["rgb"], b["rgb"])
        assert (a["maps"]["depth"].map == b["maps"]["depth"].map).all()


def test_rows_without_a_word_are_left_out_and_counted(tree):
    """Of COCO's ten captions two say nothing, of nine questions for training one."""
    rows = json.loads((tree / "coco_karpathy_train.json").read_text())
    for row, text in zip(rows, ["...", "- ?"]):
        row["caption"] = text
    (tree / "coco_karpathy_train.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match=r"coco: rows left out: 2 rows without a word .*1#0"):
        kept, look = data.training(smoke(recipes.COCO), tree, 0, 0)
        part = items(smoke(recipes.COCO), tree)
    assert len(kept) == 8 and look.startswith("coco 8 rows ")
    assert all(len(part[i]["ids"]) > 6 for i in range(8))  # more than the prompt and two marks
    shard_files.pack([{**kept[0], "captions": [text]} for text in ("...", "A mug.")], tree / "s")
    with pytest.warns(UserWarning, match=r"/s: rows left out: 1 samples without words"):
        packed, look = data.training(smoke(recipes.PRETRAIN, shards="s"), tree, 0, 0)
    assert len(packed) == 1 and look.startswith("s 1 rows ")
    asked = json.loads((tree / "vqav2_train_val.json").read_text())
    asked[0]["question"] = "?"
    (tree / "vqav2_train_val.json").write_text(json.dumps(asked))
    with pytest.warns(UserWarning, match=r"vqav2: rows left out: 1 rows without a word .*10\)"):
        assert len(data.training(smoke(recipes.VQA), tree, 0, 0)[0]) == 8


# --- how a step and a test are shared out -------------------------------------------------------


def test_warm_up_and_parts_of_a_batch_are_those_published(monkeypatch):
    told = []
    monkeypatch.setattr(train, "fit", lambda model, items, loss, config, **_: told.append(config))

    class Many:
        collate = None

        def __len__(self):
            return 1024 * 400 + 5

    recipes.fit(recipes.PRETRAIN.scales["paper"], None, Many(), 0, None)
    assert told[0].accumulate == 32  # 1024 samples, 32 at a time, on one GPU
    assert told[0].warmup * 20 * 400 == 2000  # of 20 epochs of 400 steps


@pytest.mark.parametrize("count", [1, 3])
def test_a_test_is_shared_out_and_comes_back_in_order(made, monkeypatch, count):
    part = items(smoke(recipes.COCO), made)  # ten rows
    model, _ = start.build(smoke(recipes.COCO), 0)
    asked, others = [], []

    class Process:
        num_processes, process_index, is_main_process = count, 0, False

    def say(prompts, experts):
        asked.append(len(prompts))
        return [f"{float(x[0, 0, 0])}" for x in experts["rgb"]]

    monkeypatch.setattr(scoring, "processes", lambda: Process)
    monkeypatch.setattr(accelerate_utils, "gather_object", lambda mine: mine + others)
    expected = [f"{float(part[i]['rgb'][0, 0, 0])}" for i in range(10)]
    others += [(i, text) for i, text in enumerate(expected) if i % count]
    assert scoring._each(smoke(recipes.COCO), model, part, say) == expected
    assert asked == {1: [2] * 5, 3: [2, 2]}[count]  # of the first of three: rows 0, 3, 6, 9


@pytest.mark.parametrize("count", [1, 3])
def test_all_processes_get_the_statistics_of_the_first(monkeypatch, count):
    asked = []

    class Process:
        num_processes = count

    def broadcast(value):
        asked.append(value)
        return torch.full_like(value, 7)  # what the first process has

    monkeypatch.setattr(scoring, "processes", lambda: Process)
    monkeypatch.setattr(accelerate_utils, "broadcast", broadcast)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scoring.same_buffers(model)
    norm = model[1]
    found = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    assert [set(value.flatten().tolist()) == {7} for value in found] == [count > 1] * 3
    assert len(asked) == (3 if count > 1 else 0)
    assert all(torch.equal(before[name], value) for name, value in norm.named_parameters("1"))


def test_statistics_are_made_equal_before_weights_are_kept_and_tested(monkeypatch):
    order = []
    fit, save, score = recipes.fit, recipes.trainable.save_trainable, recipes.score

    def note(name, work):
        return lambda *given: (order.append(name), work(*given))[1]

    monkeypatch.setattr(recipes, "fit", note("fit", fit))
    monkeypatch.setattr(recipes, "same_buffers", note("same", recipes.same_buffers))
    monkeypatch.setattr(recipes.trainable, "save_trainable", note("save", save))
    monkeypatch.setattr(recipes, "score", note("score", score))
    recipes.run_unit(smoke(recipes.VQA, seeds=[8], experts=()), "0")
    assert order == ["fit", "same", "save", "score"]


# --- bad input ----------------------------------------------------------------------------------


def test_without_data_the_folder_and_the_card_are_named(monkeypatch):
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    with pytest.raises(InputError, match=r"set coco is not at MMFUSION_DATA .*data_cards/coco\.md"):
        recipes.run_unit(smoke(recipes.COCO, made=False), unit(recipes.COCO))


@pytest.mark.parametrize(
    ("recipe", "lost", "card"),
    [
        (recipes.PRETRAIN, "filtered_cc12m.json", "web"),
        (recipes.COCO, "coco_karpathy_test_gt.json", "coco"),
        (recipes.VQA, "vg_qa.json", "vqav2"),
    ],
)
def test_a_missing_list_is_named_with_its_card_before_anything_is_built(
    tree, monkeypatch, recipe, lost, card
):
    (tree / lost).unlink()
    monkeypatch.setattr(start, "load_prismer", None)
    with pytest.raises(InputError, match=rf"{lost} does not exist.*data_cards/{card}\.md"):
        recipes.run_unit(smoke(recipe, made=False), unit(recipe))


def test_missing_classes_are_named(tree):
    (tree / "imagenet/imagenet_class.json").unlink()
    with pytest.raises(InputError, match=r"imagenet_class\.json does not exist: make it with"):
        recipes.run_unit(smoke(recipes.IMAGENET, made=False), unit(recipes.IMAGENET))


def test_missing_labels_are_named_with_the_command_that_makes_them(tree):
    shutil.rmtree(tree / "labels/normal")
    with pytest.raises(InputError, match=r"labels/normal does not exist.*mmfusion_lib experts .*"):
        recipes.run_unit(smoke(recipes.COCO, made=False), unit(recipes.COCO))


def test_a_missing_label_file_is_named_before_training(tree, monkeypatch):
    (tree / DEPTH).unlink()
    monkeypatch.setattr(train, "fit", None)
    with pytest.raises(InputError, match=rf"{DEPTH} does not exist: make the labels of depth"):
        recipes.run_unit(smoke(recipes.COCO, made=False), unit(recipes.COCO))


def test_where_there_is_no_word_there_is_no_file(tree):
    shutil.rmtree(tree / "labels/ocr_detection")
    part = items(smoke(recipes.COCO), tree)
    assert (part[0]["maps"]["ocr_detection"].map == 255).all()


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        ("gone/model.safetensors", r"gone/model\.safetensors does not exist: correct the path"),
        ("prismer-pretrain", r"does not exist: run the recipe prismer-pretrain with this model"),
    ],
)
def test_a_missing_start_is_named(begin, message):
    with pytest.raises(InputError, match=f"start='{begin}'.*{message}"):
        recipes.run_unit(smoke(recipes.COCO, start=begin, layers=2), "0")


def test_a_start_with_other_experts_is_refused(done):
    path = str(start.stage_file(smoke(recipes.COCO), "prismer-coco"))
    with pytest.raises(InputError, match=r"trained with experts=\['depth', .* not \('edge',\)"):
        start.build(smoke(recipes.VQA, start=path, experts=("edge",)), 0)


def test_going_on_with_other_data_names_the_source_that_changed(tree, monkeypatch):
    """A word of Visual Genome's one caption changes between two calls."""
    real, calls = prismer_training.objective, []

    def stop(model, batch):
        calls.append(1)
        if len(calls) == 3:  # two parts a step: in step 2
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(prismer_training, "objective", stop)
    often = {**smoke(recipes.PRETRAIN)["train"], "checkpoint_every": 1}
    s = smoke(recipes.PRETRAIN, made=False, train=often)
    with pytest.raises(KeyboardInterrupt):
        recipes.run_unit(s, "0")
    [row] = json.loads((tree / "vg_caption.json").read_text())
    (tree / "vg_caption.json").write_text(json.dumps([{**row, "caption": "another mug"}]))
    with pytest.raises(InputError, match="data digest=") as error:
        recipes.run_unit(s, "0")
    was, now = re.findall(r"'(coco [^']+)'", str(error.value))
    was, now = was.split("; "), now.split("; ")
    parts = ["coco 10 rows", "vg 1 rows", "cc3m_sbu 1 rows", "cc12m 1 rows", "settings"]
    assert [part.rpartition(" ")[0] for part in was] == parts
    assert [one == other for one, other in zip(was, now)] == [True, False, True, True, True]
    assert now[1].startswith("vg 1 rows ")


def test_a_caption_without_a_word_is_named(made):
    part = items(smoke(recipes.COCO), made)
    part.data = [{**part.data[0], "captions": ["..."]}]
    with pytest.raises(InputError, match=r"captions of 1#0 have no word"):
        part[0]


# --- the made tree ------------------------------------------------------------------------------


def test_the_made_tree_tells_the_truth(made):
    scene: Scene = scenes.decode(scenes.load("train", 1)[0])
    row = coco.load("train", made)[0]
    assert row["captions"][0] in scene_tasks.captions(scene.graph)
    objects = len(scene.graph["objects"])
    asked = data.training(smoke(recipes.VQA), made, 0, 0)[0][0]
    assert asked["question"] == "How many objects are there?" and asked["answers"] == [str(objects)]
