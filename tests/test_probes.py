"""Probes against scikit-learn on the same objective, and the metrics that judge them."""

from __future__ import annotations

import pytest
import torch

from mmfusion_lib import metrics, probes
from mmfusion_lib.errors import InputError


def blobs(count: int, classes: int = 3, width: int = 5, seed: int = 0):
    """Classes around centres that overlap; features of very different size."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(count, width, generator=generator)
    return features * torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0])[:width] + 3, labels


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_probe_is_scikit_learns_logistic_regression(decay):
    sklearn = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is absent")
    features, labels = blobs(200)
    probe = probes.fit_probe(features, labels, decays=[decay])
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    # Ours: mean loss + decay / 2 |W|^2. Theirs: C * sum of losses + 1 / 2 |W|^2: C = 1 / (N decay).
    theirs = sklearn.LogisticRegression(C=1 / (200 * decay), tol=1e-8, max_iter=10_000)
    theirs.fit(scaled, labels.numpy())
    weight = torch.tensor(theirs.coef_).float()
    bias = torch.tensor(theirs.intercept_).float()
    torch.testing.assert_close(probe.weight, weight, atol=2e-3, rtol=1e-2)
    # A softmax does not notice a number added to all biases.
    torch.testing.assert_close(
        probe.bias - probe.bias.mean(), bias - bias.mean(), atol=2e-3, rtol=1e-2
    )
    expected = torch.tensor(theirs.predict_proba(scaled)).float()
    torch.testing.assert_close(probe.logits(features).softmax(-1), expected, atol=1e-3, rtol=0)


def test_two_points_by_hand():
    """Features 0 and 2 become -1 and 1, classes 0 and 1: W = (-w, w) by symmetry, bias 0.

    The loss is log(1 + e^(-2w)) + decay / 2 * 2 w^2. Its minimum has 2 / (1 + e^(2w)) = 2 decay w;
    with w = 1 that is decay = 1 / (1 + e^2) = 0.1192.
    """
    probe = probes.fit_probe(
        torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), decays=[0.11920292]
    )
    torch.testing.assert_close(probe.weight, torch.tensor([[-1.0], [1.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(probe.bias, torch.zeros(2), atol=1e-3, rtol=0)
    assert probe.predict(torch.tensor([[0.9], [1.1]])).tolist() == [0, 1]


def test_the_decay_is_chosen_on_validation_and_ties_take_the_largest():
    features, labels = blobs(60)
    held_out, truth = blobs(400, seed=1)
    decays = [1e-5, 1e-2, 1.0]
    alone = {d: probes.fit_probe(features, labels, decays=[d]) for d in decays}
    best = probes.fit_probe(features, labels, held_out, truth, decays=decays)
    scores = {d: p.accuracy(held_out, truth) for d, p in alone.items()}
    assert best.validation == pytest.approx(max(scores.values()), abs=0.005)
    assert scores[best.decay] == pytest.approx(max(scores.values()), abs=0.005)
    # One easy item: every decay has it right, the smoothest classifier wins.
    mean = features[labels == 0].mean(0, keepdim=True)
    tied = probes.fit_probe(features, labels, mean, torch.tensor([0]), decays=decays)
    assert tied.decay == 1.0 and tied.validation == 1.0


def test_scale_of_features_does_not_matter_and_constants_are_harmless():
    features, labels = blobs(80)
    constant = torch.cat([1000 * features - 7, torch.full((80, 1), 4.0)], dim=1)
    one = probes.fit_probe(features, labels, decays=[0.1])
    two = probes.fit_probe(constant, labels, decays=[0.1])
    torch.testing.assert_close(one.weight, two.weight[:, :-1], atol=1e-3, rtol=1e-2)
    assert two.weight[:, -1].abs().max() < 1e-6


def test_half_precision_features_and_more_classes_than_seen():
    features, labels = blobs(50)
    probe = probes.fit_probe(features.bfloat16(), labels, num_classes=6, decays=[0.1])
    assert probe.weight.dtype == torch.float32 and probe.weight.shape == (6, 5)
    assert probe.predict(features.bfloat16()).max() < 3  # classes without items are not predicted


def test_bad_input_is_one_sentence():
    features, labels = blobs(10)
    with pytest.raises(InputError, match=r"shape \(10, 5\) for 9 labels"):
        probes.fit_probe(features, labels[:9], decays=[1])
    with pytest.raises(InputError, match="pooled"):
        probes.fit_probe(features[:, None], labels, decays=[1])
    with pytest.raises(InputError, match="validation features"):
        probes.fit_probe(features, labels)
    features[4, 1] = float("nan")
    with pytest.raises(InputError, match=r"Row 4 .* not finite"):
        probes.fit_probe(features, labels, decays=[1])


# --- metrics ----------------------------------------------------------------------------------


def test_accuracy_and_f1_by_hand():
    # Class 0: 1 hit, 2 predicted, 2 true: 2 / 4. Class 1: 1 hit, 1 and 1: 1. Class 2: no hit: 0.
    predictions, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 0])
    assert metrics.accuracy(predictions, labels) == 0.5
    assert metrics.f1(predictions, labels, 3) == pytest.approx((0.5, 0.5))
    assert metrics.f1(predictions, labels, 4)[1] == pytest.approx(0.375)  # an absent class is 0


@pytest.mark.parametrize("several", [False, True])
def test_f1_is_scikit_learns(several):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is absent")
    generator = torch.Generator().manual_seed(0)
    shape = (50, 4) if several else (50,)
    high = 2 if several else 4
    a, b = (torch.randint(high, shape, generator=generator) for _ in range(2))
    if several:
        a[:, 3] = b[:, 3] = 0  # neither occurs nor is predicted
    for value, average in zip(metrics.f1(a, b, 4), ("micro", "macro")):
        expected = sklearn.f1_score(
            b.numpy(), a.numpy(), average=average, zero_division=0, labels=range(4)
        )
        assert value == pytest.approx(expected)


def test_what_a_text_alone_gives():
    texts, labels = ["How many?"] * 4 + ["Where?"] * 2, [*"0112lr"]
    assert metrics.text_alone(texts, labels) == 0.5
    texts[0] = "How many mugs?"  # now its wording gives it away
    assert metrics.text_alone(texts, labels) == pytest.approx(4 / 6)


def test_metrics_refuse_other_lengths():
    with pytest.raises(ValueError, match="same shape"):
        metrics.accuracy(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        metrics.accuracy(torch.zeros(0), torch.zeros(0))


def test_bootstrap_of_equal_and_of_shifted_scores():
    scores = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    assert metrics.paired_bootstrap(scores, scores) == (0, 0, 0)
    found = metrics.paired_bootstrap(scores + 0.25, scores)
    assert found == pytest.approx((0.25, 0.25, 0.25)) and found.beats
    assert not metrics.paired_bootstrap(scores, scores + 0.25).beats


def test_bootstrap_has_the_width_of_a_normal_interval():
    noise = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
    found = metrics.paired_bootstrap(noise, torch.zeros(1, 500))
    expected = 2 * 1.96 * noise.std().item() / 500**0.5
    assert found.high - found.low == pytest.approx(expected, rel=0.1)
    assert found.low < found.difference < found.high
    assert found == metrics.paired_bootstrap(noise, torch.zeros(1, 500))  # seeded


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for trial in range(100):
        scores = 0.3 + torch.randn(1, 60, generator=generator)
        found = metrics.paired_bootstrap(scores, torch.zeros(1, 60), draws=300, seed=trial)
        inside += found.low <= 0.3 <= found.high
    assert 88 <= inside <= 99  # 95 expected, standard deviation 2.2


def test_groups_and_seeds_widen_the_interval():
    values = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    repeated = values.repeat_interleave(10, dim=1)  # (1, 200): ten copies of each
    groups = [i // 10 for i in range(200)]
    zeros = torch.zeros(1, 200)
    narrow = metrics.paired_bootstrap(repeated, zeros)
    wide = metrics.paired_bootstrap(repeated, zeros, groups)
    plain = metrics.paired_bootstrap(values, torch.zeros(1, 20))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide == pytest.approx(plain)  # groups of equal items are those items
    # Two seeds that disagree: the mean over seeds is uncertain, whatever the items say.
    seeds = torch.tensor([[0.0], [1.0]]).expand(2, 30)
    found = metrics.paired_bootstrap(seeds, torch.zeros(2, 30))
    assert (found.low, found.high) == (0, 1) and not found.beats


def test_bootstrap_refuses_what_cannot_be_paired():
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        metrics.paired_bootstrap(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="2 groups were given for 3 items"):
        metrics.paired_bootstrap(torch.zeros(1, 3), torch.zeros(1, 3), ["a", "b"])
