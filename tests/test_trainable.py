"""Freezing, trainable-only checkpoints and the digest that ties them to the frozen weights."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from mmfusion_lib.errors import InputError
from mmfusion_lib.trainable import (
    freeze,
    frozen_digest,
    load_trainable,
    read_trainable,
    save_trainable,
    train_mode,
    trainable_state,
    trainable_table,
)


def small(seed: int = 0) -> nn.Module:
    """A frozen tower (with dropout and BatchNorm) under a trainable head with BatchNorm."""
    torch.manual_seed(seed)
    tower = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = nn.ModuleDict({"tower": tower, "head": head})
    freeze(model, except_=["head"])
    return model


def test_freeze_keeps_only_the_named_part_and_matches_whole_names():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    freeze(model, except_="1")  # not 10 and 11
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]
    with pytest.raises(InputError, match="'hed' names no parameter"):
        freeze(model, except_=["hed"])


def test_frozen_towers_stay_in_evaluation_mode():
    model = train_mode(small())
    assert not any(m.training for m in model["tower"].modules())
    assert all(m.training for m in model["head"].modules())
    x = torch.randn(8, 4)
    before = {k: v.clone() for k, v in model["tower"].state_dict().items()}
    assert torch.equal(model["tower"](x), model["tower"](x))  # dropout is off
    assert all(torch.equal(before[k], v) for k, v in model["tower"].state_dict().items())


def test_only_what_trains_is_stored():
    assert list(trainable_state(small())) == [
        "head.0.weight",
        "head.0.bias",
        "head.0.running_mean",
        "head.0.running_var",
        "head.0.num_batches_tracked",
        "head.2.weight",
        "head.2.bias",
    ]


def test_round_trip(tmp_path):
    model = small()
    train_mode(model)["head"](torch.randn(8, 4))  # moves the running statistics
    save_trainable(model, tmp_path / "a.safetensors", {"classes": 2})
    other = small()
    with torch.no_grad():
        for value in trainable_state(other).values():
            value.zero_()
    assert load_trainable(other, tmp_path / "a.safetensors") == {"classes": 2}
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())
    )


def test_half_precision_rounds_and_refuses_overflow(tmp_path):
    model = small()
    save_trainable(model, tmp_path / "a.safetensors", half=True)
    tensors, metadata = read_trainable(tmp_path / "a.safetensors")
    assert tensors["head.2.weight"].dtype == torch.float16
    assert tensors["head.0.num_batches_tracked"].dtype == torch.int64
    assert metadata["frozen"] == frozen_digest(model)  # the frozen part keeps its own precision
    load_trainable(small(), tmp_path / "a.safetensors")
    with torch.no_grad():
        model["head"][2].weight[0, 0] = 1e6
    with pytest.raises(InputError, match=r"'head.2.weight' does not fit float16"):
        save_trainable(model, tmp_path / "b.safetensors", half=True)
    assert not (tmp_path / "b.safetensors").exists()


def test_other_frozen_weights_are_refused_and_nothing_changes(tmp_path):
    save_trainable(small(0), tmp_path / "a.safetensors")
    other = small(1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match="was trained on other frozen weights"):
        load_trainable(other, tmp_path / "a.safetensors")
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_names_and_shapes_are_checked(tmp_path):
    save_trainable(small(), tmp_path / "a.safetensors")
    more = small()
    more["tower"][0].requires_grad_(True)
    with pytest.raises(InputError, match=r"lacks 'tower.0.bias' \(2 missing"):
        load_trainable(more, tmp_path / "a.safetensors")
    fewer = small()
    fewer["head"][2].requires_grad_(False)
    with pytest.raises(InputError, match=r"has 'head.2.bias', which does not train"):
        load_trainable(fewer, tmp_path / "a.safetensors")
    wider = small()
    wider["head"][2] = nn.Linear(4, 3)
    with pytest.raises(InputError, match=r"'head.2.weight' has shape \(2, 4\) but .* \(3, 4\)"):
        load_trainable(wider, tmp_path / "a.safetensors")


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_trainable(small(), tmp_path / "none.safetensors")
    save_trainable(small(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="no readable safetensors"):
        load_trainable(small(), tmp_path / "a.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="was not written by save_trainable"):
        load_trainable(small(), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no trainable parameter"):
        save_trainable(freeze(nn.Linear(2, 2)), tmp_path / "c.safetensors")


def test_digest_sees_values_names_types_and_buffers_but_not_what_trains():
    model, digest = small(), frozen_digest(small())
    with torch.no_grad():
        model["head"][2].weight.add_(1)
    assert frozen_digest(model) == digest
    with torch.no_grad():
        model["tower"][2].running_mean[0] += 1e-6
    assert frozen_digest(model) != digest
    assert frozen_digest(small().bfloat16()) != digest  # bfloat16 has bytes too


def test_tied_weights_are_stored_once(tmp_path):
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    save_trainable(tied(), tmp_path / "a.safetensors")
    assert list(read_trainable(tmp_path / "a.safetensors")[0]) == ["embed.weight"]
    load_trainable(tied(), tmp_path / "a.safetensors")


def test_digest_of_a_small_vit_is_fast():
    model = freeze(nn.Linear(22_000, 1_000, bias=False))  # 22 M parameters, 88 MB
    frozen_digest(model)
    start = time.perf_counter()
    frozen_digest(model)
    assert time.perf_counter() - start < 2.0  # 0.1-0.3 s on a quiet core


def test_table_groups_layers_of_one_name():
    # 3 layers of 2 x 2 + 2 = 18 of 18 + 3 x 2 + 3 = 27 parameters
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
    model["head"] = freeze(nn.Linear(2, 3))
    lines = trainable_table(model).splitlines()
    assert lines[0].split() == ["layers.*.weight", "x3", "(2,", "2)", "12"]
    assert lines[1].split() == ["layers.*.bias", "x3", "(2,)", "6"]
    assert lines[2].split() == ["trains,", "of", "27", "66.67%", "18"]
