"""The causal decoder: equal to transformers' RoBERTa, blind to padding, and cached exactly."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmfusion_lib.decoder import Decoder, causal, loss
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError

BERT = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=10)
ROBERTA = replace(BERT, pad_id=1, position_offset=2, token_types=1)
FAMILIES = (BERT, ROBERTA)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def make(config: EncoderConfig = BERT, seed: int = 0, vision: int = 6, **options) -> Decoder:
    """A decoder whose every weight is random and large enough to matter."""
    torch.manual_seed(seed)
    decoder = Decoder(build_encoder(config), vision, **options)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return decoder.eval()


def random_mask(rows: int, length: int) -> torch.Tensor:
    """Padding anywhere: left, middle, right; one token at least in every row."""
    mask = (torch.rand(rows, length) > 0.35).long()
    mask[torch.arange(rows), torch.randint(length, (rows,))] = 1
    return mask


# What it computes


@pytest.mark.parametrize("extra_layer", [True, False])
def test_equal_to_the_roberta_of_transformers(extra_layer):
    """Its decoder with cross-attention, adaptors put in by hand, and padding in the middle."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.RobertaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=20, max_position_embeddings=12, type_vocab_size=1, layer_norm_eps=1e-5,
        is_decoder=True, add_cross_attention=True, attn_implementation="eager",
    )  # fmt: skip
    decoder = make(replace(ROBERTA, eps=1e-5), extra_layer=extra_layer, vision=8)
    model = transformers.RobertaForCausalLM(settings).eval()
    body, head = model.roberta, model.lm_head
    pairs = [
        (body.embeddings.word_embeddings, decoder.words),
        (body.embeddings.position_embeddings, decoder.positions),
        (body.embeddings.token_type_embeddings, decoder.types),
        (body.embeddings.LayerNorm, decoder.input_norm),
        (head.dense, decoder.head.dense),
        (head.layer_norm, decoder.head.norm),
    ]
    for theirs, ours in zip(body.encoder.layer, decoder.layers):
        pairs += layer_pairs(theirs, ours.block)
        look, cross = theirs.crossattention, ours.cross
        pairs += [
            (look.self.query, cross.query), (look.self.key, cross.key),
            (look.self.value, cross.value), (look.output.dense, cross.out),
            (look.output.LayerNorm, cross.norm),
        ]  # fmt: skip
        # Theirs goes from cross-attention straight to the MLP; the adaptor comes between.
        look.register_forward_hook(
            lambda _, __, out, adaptor=ours.adaptor: (adaptor(out[0]), *out[1:])
        )
    if extra_layer:  # the same kind of layer, without cross-attention
        last = type(body.encoder.layer[0])(model.config).eval()
        last.is_decoder = False
        pairs += layer_pairs(last, decoder.output_layer)
        body.encoder.layer.append(last)
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    head.bias.data.copy_(decoder.head.bias)
    if head.decoder.bias is not head.bias:
        head.decoder.bias.data.copy_(decoder.head.bias)
    ids = torch.tensor([[0, 5, 6, 1, 7, 2], [0, 8, 9, 10, 11, 2], [0, 1, 1, 1, 12, 2]])
    mask = (ids != 1).long()
    latents = torch.randn(3, 5, 8)
    with torch.no_grad():
        ours = decoder(ids, latents, mask)
        theirs = model(
            ids, attention_mask=mask, encoder_hidden_states=latents, use_cache=False
        ).logits
    # At padding too: the official code reads first answer tokens there.
    torch.testing.assert_close(ours, theirs, **CLOSE)


def layer_pairs(theirs: nn.Module, block: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    inner = theirs.attention
    return [
        (inner.self.query, block.attention.query),
        (inner.self.key, block.attention.key),
        (inner.self.value, block.attention.value),
        (inner.output.dense, block.attention.out),
        (inner.output.LayerNorm, block.norm1),
        (theirs.intermediate.dense, block.mlp.fc1),
        (theirs.output.dense, block.mlp.fc2),
        (theirs.output.LayerNorm, block.norm2),
    ]


def test_visible_by_hand():
    # 0 is padding. Row n: which of the five keys the token n may read.
    mask = torch.tensor([[0, 1, 0, 1, 1]]).bool()
    expected = [
        [1, 0, 0, 0, 0],  # padding before the first token: itself, so that the softmax is defined
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],  # padding in the middle reads what came before
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 1],
    ]
    assert causal(mask, 5)[0, 0].long().tolist() == expected
    assert causal(mask, 2)[0, 0].long().tolist() == expected[3:]


@pytest.mark.parametrize("config", FAMILIES)
def test_positions_skip_padding_and_equal_those_of_the_encoder(config):
    """Rows of the position table that a text takes, read off a table of 0, 1, 2, ..."""
    decoder = make(config)
    taken = []
    decoder.positions.register_forward_hook(lambda _, args, __: taken.append(args[0].tolist()))
    ids, pad = torch.tensor([[5, 6, 7]]), config.pad_id
    decoder(ids, torch.randn(1, 2, 6))
    encoder = build_encoder(config)
    assert taken[-1] == encoder._position_ids(ids).expand(1, 3).tolist()
    padded = torch.tensor([[pad, 5, pad, 6, 7]])
    decoder(padded, torch.randn(1, 2, 6), (padded != pad).long())
    # BERT: 0, 1, 2 for the words; padding, never seen, takes row 0. RoBERTa: as its encoder does.
    expected = [[0, 0, 0, 1, 2]] if config is BERT else encoder._position_ids(padded).tolist()
    assert taken[-1] == expected


def test_a_padding_token_that_roberta_wrote_itself_is_read_but_not_counted():
    """Its positions follow the ids, as its encoder's do; the same word by word as at once."""
    decoder, taken = make(ROBERTA), []
    decoder.positions.register_forward_hook(lambda _, args, __: taken.append(args[0].tolist()))
    ids, latents = torch.tensor([[5, 1, 6, 7]]), torch.randn(1, 2, 6)  # 1 is RoBERTa's padding
    whole = decoder(ids, latents)
    assert taken[-1] == [[2, 1, 3, 4]] == build_encoder(ROBERTA)._position_ids(ids).tolist()
    cache = decoder.start(latents)
    steps = [decoder.step(ids[:, n : n + 1], cache) for n in range(4)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **CLOSE)
    other = decoder(torch.tensor([[5, 9, 6, 7]]), latents)
    assert not torch.allclose(other[:, 2:], whole[:, 2:])


@pytest.mark.parametrize("config", FAMILIES)
def test_later_words_change_nothing_before_them_and_latents_change_everything(config):
    decoder = make(config)
    ids, latents = torch.tensor([[5, 6, 7, 8]]), torch.randn(1, 3, 6)
    before = decoder(ids, latents)
    other = decoder(torch.tensor([[5, 6, 9, 8]]), latents)
    assert torch.equal(other[:, :2], before[:, :2])
    assert (other[:, 2:] - before[:, 2:]).abs().amax(-1).min() > 1e-3
    moved = decoder(ids, latents + torch.randn(1, 3, 6))
    assert (moved - before).abs().amax(-1).min() > 1e-3


def test_padding_is_invisible_wherever_it_stands():
    """20 random models: each row of a padded batch equals its text alone."""
    for seed, config in itertools.product(range(10), FAMILIES):
        decoder = make(config, seed)
        ids, mask = torch.randint(20, (3, 7)), random_mask(3, 7)
        latents = torch.randn(3, 4, 6)
        together = decoder(ids, latents, mask)
        for row in range(3):
            kept = mask[row].bool()
            alone = decoder(ids[row : row + 1, kept], latents[row : row + 1])
            torch.testing.assert_close(together[row : row + 1, kept], alone, **CLOSE)


def test_the_cache_changes_nothing():
    """24 random models: pieces of random length, several texts an image, equal the whole prefix."""
    for seed, config in itertools.product(range(12), FAMILIES):
        decoder = make(config, seed, extra_layer=seed % 3 > 0)
        texts = 2 * (1 + seed % 3)  # of 2 images
        ids, mask = torch.randint(20, (texts, 8)), random_mask(texts, 8)
        latents = torch.randn(2, 4, 6)
        repeated = latents.repeat_interleave(texts // 2, dim=0)
        whole = decoder(ids, repeated, mask)
        torch.testing.assert_close(decoder(ids, latents, mask), whole, **CLOSE)
        cache, done = decoder.start(latents), 0
        while done < 8:
            piece = slice(done, done + int(torch.randint(1, 4, ())))
            done = min(8, piece.stop)
            step = decoder.step(ids[:, piece], cache, mask[:, piece])
            torch.testing.assert_close(step, whole[:, piece], **CLOSE)


def test_selecting_texts_and_images_from_the_cache():
    decoder, latents = make(), torch.randn(3, 4, 6)
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
    cache = decoder.start(latents)
    decoder.step(ids, cache)
    # Image 1 goes; the text of image 0 goes on in two ways, and that of image 2 too.
    cache = cache.select(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2]))
    more = torch.tensor([[11], [12], [13], [14]])
    step = decoder.step(more, cache)
    for row, (image, word) in enumerate(((0, 11), (0, 12), (2, 13), (2, 14))):
        text = torch.tensor([[*ids[image].tolist(), word]])
        alone = decoder(text, latents[image : image + 1])[:, -1:]
        torch.testing.assert_close(step[row : row + 1], alone, **CLOSE)


def test_vision_tokens_are_projected_once():
    decoder, calls = make(), []
    for layer in decoder.layers:
        layer.cross.key.register_forward_hook(lambda *_: calls.append("key"))
        layer.cross.value.register_forward_hook(lambda *_: calls.append("value"))
    cache = decoder.start(torch.randn(1, 4, 6))
    for word in (5, 6, 7):
        decoder.step(torch.tensor([[word]] * 3), cache)
    assert len(calls) == 2 * 2  # two layers, whatever the number of steps and texts
    assert cache.cross[0][0].shape == (1, 2, 4, 4)  # one image, though there are three texts


# Weights


def test_parameters_of_the_base_decoder():
    with torch.device("meta"):
        decoder = Decoder(build_encoder("roberta-base"), 768)

    def count(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    # Four maps 768 -> 768 with bias and one norm: 4 * 590 592 + 1536. Two and one: an adaptor.
    assert count(*(layer.cross for layer in decoder.layers)) == 12 * 2_363_904  # 28.37M
    assert count(*(layer.adaptor for layer in decoder.layers)) == 12 * 1_182_720  # 14.19M
    assert count(*(layer.block for layer in decoder.layers)) == 12 * 7_087_872  # 85.05M
    assert count(decoder.output_layer) == 7_087_872  # 7.09M
    # Dense and norm of the head, and a bias for each word; the word table is not counted twice.
    assert count(decoder.head) == 590_592 + 1536 + 50_265
    tables = count(decoder.words, decoder.positions, decoder.types, decoder.input_norm)
    assert tables == (50_265 + 514 + 1 + 2) * 768
    parts = 12 * (2_363_904 + 1_182_720 + 7_087_872) + 7_087_872 + 642_393 + tables
    assert count(decoder) == parts
    assert sum("words" in name for name in decoder.state_dict()) == 1


def test_names_modules_and_start_of_the_new_parts():
    encoder = build_encoder(replace(BERT, vocab_size=60))
    decoder = Decoder(encoder, 6, adaptor={"bottleneck": 3})
    assert decoder.words is encoder.words
    assert decoder.layers[1].block is encoder.layers[1]
    assert decoder.layers[0].adaptor.down.weight.shape == (3, 8)
    old = {id(p) for p in encoder.parameters()}
    new = {n: p for n, p in decoder.named_parameters() if id(p) not in old}
    names = {".".join(name.split(".")[:3:2]) for name in new if name.startswith("layers")}
    assert names == {"layers.cross", "layers.adaptor"}
    assert {n.split(".")[0] for n in new} == {"layers", "output_layer", "head"}
    for name, parameter in new.items():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif parameter.ndim == 2:
            assert 0.01 < parameter.std() < 0.03
        else:
            assert torch.equal(parameter, torch.ones_like(parameter))  # norms
    near = Decoder(build_encoder(BERT), 6, adaptor={"near_zero": True})
    assert near.layers[0].adaptor.up.weight.std() < 0.005


@pytest.mark.parametrize("config", FAMILIES)
def test_gradient_reaches_every_parameter(config):
    decoder = make(config).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    latents = torch.randn(1, 3, 6, requires_grad=True)
    loss(decoder(ids, latents), ids).sum().backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []
    assert latents.grad.abs().max() > 0


def test_dropout_acts_in_training_only():
    decoder = make(replace(BERT, dropout=0.3))
    ids, latents = torch.tensor([[5, 6, 7]]), torch.randn(1, 3, 6)
    assert torch.equal(decoder(ids, latents), decoder(ids, latents))
    decoder.train()
    assert not torch.equal(decoder(ids, latents), decoder(ids, latents))


def test_half_precision():
    decoder = make().to(torch.bfloat16)
    logits = decoder(torch.tensor([[5, 6]]), torch.randn(1, 3, 6, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert loss(logits, torch.tensor([[5, 6]])).dtype == torch.float32


# Loss


def test_loss_by_hand():
    # V = 4, logits 0 but log 5 for word 2: p = 1/8, 1/8, 5/8, 1/8 after every position.
    logits = torch.zeros(2, 3, 4)
    logits[..., 2] = torch.tensor(5.0).log()
    labels = torch.tensor([[-100, 2, 0], [3, -100, 2]])  # the first column predicts nothing
    # Plain: -log 5/8 - log 1/8 = log(64 / 5) for the first text, log(8 / 5) for the second.
    plain = torch.tensor([64 / 5, 8 / 5]).log()
    torch.testing.assert_close(loss(logits, labels, 0.0), plain)
    # Smoothed: 0.9 of it, and 0.1 of the mean of -log p over the words for each token learnt.
    mean = torch.tensor([8.0, 8.0, 8 / 5, 8.0]).log().mean()
    expected = 0.9 * plain + 0.1 * mean * torch.tensor([2, 1])
    torch.testing.assert_close(loss(logits, labels), expected)


def test_loss_equals_torch_with_padding_left_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    labels[0, 2:] = -100
    for row in range(3):
        learnt = labels[row, 1:] >= 0
        expected = F.cross_entropy(
            logits[row, :-1][learnt], labels[row, 1:][learnt], reduction="sum", label_smoothing=0.1
        )
        torch.testing.assert_close(loss(logits, labels)[row], expected)


# Errors


@pytest.mark.parametrize(
    ("ids", "latents", "mask", "message"),
    [
        ([[5, 20]], (1, 3, 6), None, "input_ids holds 20, outside the vocabulary of 20"),
        ([[5, -1]], (1, 3, 6), None, "holds -1"),
        ([[5.0]], (1, 3, 6), None, r"type torch\.float32: give integers"),
        ([[5] * 11], (1, 3, 6), None, "11 tokens long and this decoder has 10 positions"),
        (
            [[5]],
            (1, 3, 5),
            None,
            r"latents has shape \(1, 3, 5\) but this decoder reads \(B, L, 6\)",
        ),
        ([[5]], (3, 6), None, r"latents has shape \(3, 6\)"),
        ([[5]], (2, 3, 6), None, "1 texts for 2 images"),
        ([[5, 6]], (1, 3, 6), [[1]], r"attention_mask has shape \(1, 1\) but input_ids \(1, 2\)"),
    ],
)
def test_bad_input(ids, latents, mask, message):
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(InputError, match=message):
        make()(torch.tensor(ids), torch.zeros(latents), mask)


def test_more_bad_input():
    decoder = make()
    cache = decoder.start(torch.zeros(1, 3, 6))
    decoder.step(torch.tensor([[5], [6]]), cache)
    with pytest.raises(InputError, match="1 texts for 1 images and 2 texts in the cache"):
        decoder.step(torch.tensor([[5]]), cache)
    decoder.step(torch.tensor([[5] * 8] * 2), cache)
    with pytest.raises(InputError, match="11 tokens long"):
        decoder.step(torch.tensor([[5, 5]] * 2), cache)
    with pytest.raises(InputError, match="labels has shape"):
        loss(torch.zeros(1, 3, 4), torch.zeros(1, 2).long())
    with pytest.raises(InputError, match="norm='pre'"):
        Decoder(build_encoder(replace(BERT, norm="pre")), 6)


def test_padding_does_not_count_towards_the_positions():
    ids = torch.full((1, 14), 5)
    mask = torch.tensor([[0] * 4 + [1] * 10])
    assert make()(ids, torch.zeros(1, 3, 6), mask).isfinite().all()
