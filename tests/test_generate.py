"""Greedy, beam search and sampling equal a plain search that runs every prefix anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmfusion_lib.decoder import Decoder
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.generate import alternatives, generate, generate_scored, left_packed
from mmfusion_lib.sampling import Sampler

BERT = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=12, max_positions=14)
ROBERTA = replace(BERT, pad_id=1, position_offset=2, token_types=1)
END = 2


def make(seed: int, config: EncoderConfig = BERT) -> Decoder:
    """A random model in which the end mark is neither rare nor certain."""
    torch.manual_seed(seed)
    decoder = Decoder(build_encoder(config), 6)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        decoder.head.bias[END] += 1.5
    return decoder.eval()


def prompts_of(*lengths: int) -> list[list[int]]:
    return [torch.randint(3, 12, (length,)).tolist() for length in lengths]


def padded(prompts: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def next_words(decoder: Decoder, latents: torch.Tensor, texts: list, shortest: int) -> list:
    """log p of every next token after texts of one length and image, no padding, no cache."""
    with torch.no_grad():
        logits = decoder(torch.tensor(texts), latents.expand(len(texts), -1, -1))
    logs = logits[:, -1].log_softmax(-1)
    if len(texts[0]) < shortest:
        logs[:, END] = float("-inf")
    return logs.tolist()


def plain_greedy(decoder, latents, prompt, longest, shortest):
    text, total = list(prompt), 0.0
    while len(text) < longest and text[len(prompt) :][-1:] != [END]:
        logs = next_words(decoder, latents, [text], shortest)[0]
        word = max(range(12), key=lambda w: logs[w])
        text, total = [*text, word], total + logs[word]
    return text, total


def plain_beams(decoder, latents, prompt, beams, longest, shortest, penalty, exact):
    """Sums and lengths as the beam scorer of transformers 4.26 counts them."""
    opened, ended = [(0.0, list(prompt))], []
    while True:
        length = len(opened[0][1])
        ways = []
        after = next_words(decoder, latents, [text for _, text in opened], shortest)
        for (total, text), logs in zip(opened, after):
            ways += [(total + logs[word], [*text, word]) for word in range(12)]
        ways.sort(key=lambda way: -way[0])
        ended += [
            (total / length**penalty, text)  # the end mark does not count
            for total, text in ways[:beams]
            if text[-1] == END
        ]
        ended = sorted(ended, key=lambda text: -text[0])[:beams]
        opened = [way for way in ways if way[1][-1] != END][:beams]
        if len(ended) == beams:
            hope = ways[0][0] / length**penalty
            if exact:
                hope = opened[0][0] / (longest if penalty > 0 else length + 1) ** penalty
            if ended[-1][0] >= hope:
                break
        if length + 1 == longest:
            ended += [(total / longest**penalty, text) for total, text in opened]
            break
    return max(ended, key=lambda text: text[0])


def texts(ids: torch.Tensor, mask: torch.Tensor, pad: int) -> list[list[int]]:
    """Rows without the padding before them and after their end."""
    result = []
    for row, kept in zip(ids.tolist(), mask.sum(1).tolist()):
        text = row[mask.shape[1] - kept :]
        end = next((n for n in range(kept, len(text)) if text[n] == END), None)
        assert end is None or set(text[end + 1 :]) <= {pad}
        result.append(text if end is None else text[: end + 1])
    return result


# Equality with the plain searches


@pytest.mark.parametrize("config", [BERT, ROBERTA])
def test_greedy_is_the_loop_over_the_most_probable(config):
    ended = 0
    for seed in range(8):
        decoder, latents = make(seed, config), torch.randn(3, 4, 6)
        prompts = prompts_of(4, 1, 2)
        ids, mask = padded(prompts, config.pad_id)
        result = generate_scored(
            decoder, latents, ids, mask, num_beams=1, max_length=9, min_length=seed % 7, eos_id=END
        )
        for b, (prompt, text) in enumerate(zip(prompts, texts(result.ids, mask, config.pad_id))):
            expected, total = plain_greedy(decoder, latents[b : b + 1], prompt, 9, seed % 7)
            assert text[: len(expected)] == expected
            assert set(text[len(expected) :]) <= {config.pad_id}
            length = len(expected) - (expected[-1] == END)  # the end mark does not count
            assert float(result.scores[b]) == pytest.approx(total / length, abs=1e-4)
            ended += expected[-1] == END
    assert 4 < ended < 24  # both kinds of end were met


@pytest.mark.parametrize("exact", [False, True])
def test_beam_search_equals_the_plain_one(exact):
    """Random models and settings; three images at once, each with a prompt of another length."""
    ended = 0
    for seed in range(16):
        config = (BERT, ROBERTA)[seed % 2]
        decoder, latents = make(seed, config), torch.randn(3, 4, 6)
        prompts = prompts_of(3, 1, 4)
        ids, mask = padded(prompts, config.pad_id)
        beams, penalty = 2 + seed % 3, (1.0, 0.0, -1.0, 2.0)[seed // 2 % 4]
        longest, shortest = 6 + seed % 4, seed % 6
        result = generate_scored(
            decoder, latents, ids, mask, num_beams=beams, max_length=longest,
            min_length=shortest, eos_id=END, length_penalty=penalty, exact_stop=exact,
        )  # fmt: skip
        for b, (prompt, text) in enumerate(zip(prompts, texts(result.ids, mask, config.pad_id))):
            score, expected = plain_beams(
                decoder, latents[b : b + 1], prompt, beams, longest, shortest, penalty, exact
            )
            assert text[: len(expected)] == expected, (seed, b)
            assert set(text[len(expected) :]) <= {config.pad_id}
            assert float(result.scores[b]) == pytest.approx(score, abs=1e-4)
            ended += expected[-1] == END
    assert 10 < ended < 48


def test_beam_search_finds_what_greedy_misses():
    """Probabilities by hand: 3 looks best at first, but 4 leads to the better text."""
    decoder, latents = make(0), torch.randn(1, 4, 6)
    after = {  # last token -> probabilities of 3, 4, 5 and the end
        9: (0.5, 0.4, 0.05, 0.05),
        3: (0.25, 0.25, 0.25, 0.25),
        4: (0.02, 0.02, 0.01, 0.95),
        5: (0.25, 0.25, 0.25, 0.25),
    }

    def logits(tokens):  # the token itself is carried in the first number
        table = torch.full((len(tokens), 12), -1e4)
        for row, token in enumerate(tokens[..., 0].long().tolist()):
            table[row, [3, 4, 5, END]] = torch.tensor(after[token]).log()
        return table

    decoder.logits = logits
    decoder.run = lambda ids, *_: ids[..., None].float().expand(-1, -1, 8)
    settings = {"max_length": 3, "min_length": 0, "eos_id": END, "length_penalty": 0.0}
    prompt = torch.tensor([[9]])
    greedy = generate_scored(decoder, latents, prompt, num_beams=1, **settings)
    beams = generate_scored(decoder, latents, prompt, num_beams=2, **settings)
    assert greedy.ids.tolist()[0][:2] == [9, 3]
    assert beams.ids.tolist() == [[9, 4, END]]
    assert float(beams.scores.exp()) == pytest.approx(0.4 * 0.95, abs=1e-5)
    # Length penalty 1 divides log 0.38 by 2, the prompt and the 4; the end mark does not count.
    settings["length_penalty"] = 1.0
    beams = generate_scored(decoder, latents, prompt, num_beams=2, **settings)
    assert float(beams.scores) == pytest.approx(float(torch.tensor(0.38).log()) / 2, abs=1e-5)


def test_equal_to_the_beam_search_of_transformers():
    """Its own loop over our decoder; with penalty 0 all its versions score alike."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.RobertaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=12, max_position_embeddings=16, type_vocab_size=1, is_decoder=True,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, bos_token_id=0,
        eos_token_id=END, pad_token_id=1,
    )  # fmt: skip
    for seed in range(6):
        decoder = make(seed, replace(ROBERTA, eps=1e-12))
        torch.manual_seed(seed)
        model = transformers.RobertaForCausalLM(settings).eval()

        def answer(input_ids, decoder=decoder, latents=None, **_):
            """What transformers asks of a model: logits of the last position of each text."""
            with torch.no_grad():
                logits = decoder(input_ids, latents.expand(len(input_ids), -1, -1))
            return transformers.modeling_outputs.CausalLMOutputWithCrossAttentions(logits=logits)

        latents = torch.randn(1, 4, 6)
        model.forward = lambda *args, latents=latents, answer=answer, **rest: answer(
            *args, latents=latents, **rest
        )
        ids = torch.tensor([[0, 5 + seed]])
        expected = model.generate(
            ids, num_beams=3, max_length=9, min_length=4, length_penalty=0.0, do_sample=False,
            early_stopping=False, use_cache=False,
        )  # fmt: skip
        ours = generate(
            decoder, latents, ids, max_length=9, min_length=4, length_penalty=0.0, eos_id=END
        )
        assert ours.tolist() == expected.tolist()


# Batches


@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 3}, {"sample": True, "seed": [5, 6, 7, 8]}]
)
def test_neighbours_in_the_batch_change_nothing(options):
    for seed in range(4):
        decoder, latents = make(seed), torch.randn(4, 4, 6)
        prompts = prompts_of(1, 5, 2, 3)
        ids, mask = padded(prompts)
        settings = {"max_length": 9, "min_length": 3, "eos_id": END, **options}
        together = generate_scored(decoder, latents, ids, mask, **settings)
        right = [p + [0] * (5 - len(p)) for p in prompts]  # padding behind: packed first
        again = generate(decoder, latents, torch.tensor(right), mask.flip(1), **settings)
        assert torch.equal(again, together.ids)
        for b, prompt in enumerate(prompts):
            if "seed" in options:
                settings["seed"] = options["seed"][b : b + 1]
            alone = generate_scored(decoder, latents[b : b + 1], torch.tensor([prompt]), **settings)
            row = together.ids[b, 5 - len(prompt) :]
            assert row[: alone.ids.shape[1]].tolist() == alone.ids[0].tolist()
            assert set(row[alone.ids.shape[1] :].tolist()) <= {0}
            torch.testing.assert_close(
                together.scores[b : b + 1], alone.scores, atol=1e-5, rtol=1e-5
            )


def test_each_text_may_have_lengths_of_its_own():
    decoder, latents = make(3), torch.randn(2, 4, 6)
    ids, mask = padded(prompts_of(2, 4))
    result = generate(decoder, latents, ids, mask, max_length=[5, 8], min_length=[5, 8], eos_id=END)
    assert result.shape == (2, 4 + 4)
    assert result[0].tolist()[-1] == 0 and END not in result[0].tolist()  # 3 new, then padding
    assert END not in result[1].tolist()


def test_work_stops_where_a_text_ends():
    """No row is computed for a text that has ended, and no image is copied for its beams."""
    decoder, latents = make(0), torch.randn(3, 4, 6)
    rows, images = [], []
    decoder.words.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    cross = decoder.layers[0].cross
    cross.register_forward_pre_hook(lambda _, args: images.append(len(args[1])))
    ids = torch.tensor([[3], [4], [5]])
    lengths = {"max_length": [2, 5, 3], "min_length": 9, "eos_id": END}
    generate(decoder, latents, ids, num_beams=1, **lengths)
    assert rows == [3, 2, 1, 1]
    rows.clear(), images.clear()
    generate(decoder, latents, ids, num_beams=3, **lengths)
    assert rows == [3, 6, 3, 3] and images == [3, 2, 1, 1]


def test_left_packed_by_hand():
    ids = torch.tensor([[5, 0, 6, 0], [7, 0, 0, 0]])
    packed, mask = left_packed(ids, torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]))
    assert packed.tolist() == [[5, 6], [0, 7]]  # columns without any token are gone
    assert mask.long().tolist() == [[1, 1], [0, 1]]


# Sampling and alternatives


def test_sampler_by_hand():
    # p = 0.1, 0.5, 0.4; sorted 0.5, 0.4, 0.1: numbers below 0.5 draw 1, below 0.9 draw 2, else 0.
    logs = torch.tensor([[0.1, 0.5, 0.4]]).log()

    def drawn(number: float, **options) -> int:
        sampler = Sampler(**{"temperature": 1.0, "top_k": None, "top_p": 1.0, **options},
                          seeds=[0], longest=[1])  # fmt: skip
        sampler.numbers = torch.tensor([[number]])
        return int(sampler(logs, [0], 0))

    assert [drawn(n) for n in (0.0, 0.49, 0.51, 0.89, 0.91, 1.0)] == [1, 1, 2, 2, 0, 0]
    assert [drawn(n, top_k=2) for n in (0.5, 0.6, 1.0)] == [1, 2, 2]  # 0.5 and 0.4 of 0.9
    assert [drawn(n, top_k=1) for n in (0.0, 1.0)] == [1, 1]
    assert [drawn(n, top_p=0.45) for n in (0.0, 1.0)] == [1, 1]  # 0.5 is enough
    assert [drawn(n, top_p=0.6) for n in (0.0, 1.0)] == [1, 2]
    assert [drawn(n, temperature=1e-3) for n in (0.0, 1.0)] == [1, 1]


def test_sampling_follows_the_probabilities_and_repeats_with_its_seed():
    decoder = make(0)
    latents = torch.randn(1, 4, 6).expand(600, -1, -1)
    ids = torch.full((600, 1), 5)
    settings = {"sample": True, "max_length": 2, "min_length": 0, "eos_id": END}
    result = generate_scored(decoder, latents, ids, **settings)
    assert torch.equal(result.ids, generate(decoder, latents, ids, **settings))
    assert not torch.equal(result.ids, generate(decoder, latents, ids, seed=1000, **settings))
    with torch.no_grad():
        likely = decoder(ids[:1], latents[:1])[0, -1].softmax(-1)
    share = torch.bincount(result.ids[:, 1], minlength=12) / 600
    # Spread of a share is at most sqrt(0.25 / 600) = 0.02; five of them.
    assert (share - likely).abs().max() < 0.1
    length = 1 + (result.ids[:, 1] != END)
    expected = likely.log()[result.ids[:, 1]] / length
    torch.testing.assert_close(result.scores, expected, atol=1e-5, rtol=1e-4)


def test_alternatives_are_those_of_greedy_decoding():
    decoder, latents = make(1), torch.randn(2, 4, 6)
    ids, mask = padded(prompts_of(2, 3))
    settings = {"max_length": 7, "min_length": 4, "eos_id": END}
    written = generate(decoder, latents, ids, mask, num_beams=1, **settings)
    steps = list(alternatives(decoder, latents, ids, mask, count=3, **settings))
    for place, step in enumerate(steps):
        assert step.tokens.tolist() == written[step.images, 3 + place].tolist()
        assert step.tokens.tolist() == step.alternatives[:, 0].tolist()
        assert step.probabilities.shape == (len(step.images), 3)
        assert (step.probabilities.diff(dim=1) <= 0).all() and step.probabilities.sum(1).max() <= 1
    assert len(steps) == written.shape[1] - 3


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 2}, "max_length=2 must be above the 2 tokens of the prompt"),
        ({"max_length": 15}, "max_length=15 .* at most the 14 positions"),
        ({"max_length": [8, 8]}, "max_length has 2 values for 1 prompts"),
        ({"num_beams": 0}, "num_beams=0 must be 1 or more"),
        ({"num_beams": 6}, "num_beams=6 .* below half of the vocabulary, 12"),
        ({"sample": True, "temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"sample": True, "top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"sample": True, "top_k": 0}, "top_k=0 must be 1 or more"),
        ({"sample": True, "seed": [1, 2]}, "seed has 2 values for 1 prompts"),
        ({"attention_mask": torch.tensor([[0, 0]])}, "Prompt 0 has no token"),
        ({"attention_mask": torch.tensor([[1]])}, r"attention_mask has shape \(1, 1\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        generate(
            make(0), torch.zeros(1, 4, 6), torch.tensor([[3, 4]]), **{"max_length": 9, **options}
        )


def test_bad_prompts():
    decoder, latents = make(0), torch.zeros(2, 4, 6)
    with pytest.raises(InputError, match=r"prompt_ids has shape \(1, 2\) for 2 images"):
        generate(decoder, latents, torch.tensor([[3, 4]]), max_length=9)
    with pytest.raises(InputError, match=r"prompt_ids has shape \(2, 0\)"):
        generate(decoder, latents, torch.zeros(2, 0).long(), max_length=9)
    with pytest.raises(InputError, match="holds 12, outside the vocabulary"):
        generate(decoder, latents, torch.tensor([[3], [12]]), max_length=9)
