"""Ranking by a tree of beginnings equals scoring candidate after candidate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmfusion_lib import rank as ranking
from mmfusion_lib.decoder import Decoder, loss
from mmfusion_lib.encoders import EncoderConfig, build_encoder
from mmfusion_lib.errors import InputError
from mmfusion_lib.rank import make_tree, rank

BERT = EncoderConfig("text", 8, 2, 2, 16, norm="post", vocab_size=20, max_positions=10)
ROBERTA = replace(BERT, pad_id=1, position_offset=2, token_types=1)
END = 2


def make(seed: int, config: EncoderConfig = BERT) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(build_encoder(config), 6)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return decoder.eval()


def some_candidates(count: int) -> list[list[int]]:
    """Few first tokens, so that many beginnings are shared; some repeat, some are an end alone."""
    lengths = torch.randint(0, 4, (count,)).tolist()
    return [[*torch.randint(3, 6, (length,)).tolist(), END] for length in lengths]


def one_by_one(decoder, latents, prompts, candidates, smoothings):
    """Prompt and candidate as one text of one image, no padding; minus the mean of its loss."""
    scores = torch.zeros(len(smoothings), len(prompts), len(candidates))
    for b, prompt in enumerate(prompts):
        for k, candidate in enumerate(candidates):
            text = torch.tensor([prompt + candidate])
            labels = torch.tensor([[-100] * len(prompt) + candidate])
            with torch.no_grad():
                logits = decoder(text, latents[b : b + 1])
            for number, smoothing in enumerate(smoothings):
                scores[number, b, k] = -loss(logits, labels, smoothing) / len(candidate)
    return scores


def padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokenizer's way, padding last; ``rank`` packs them itself."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([prompt + [pad] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
    return ids, mask


@pytest.mark.parametrize("rows", [512, 3])
def test_equal_to_one_by_one(monkeypatch, rows):
    """Random models of both families; 3 rows at a time cut every tree in pieces."""
    monkeypatch.setattr(ranking, "ROWS", rows)
    for seed in range(4):
        decoder = make(seed, (BERT, ROBERTA)[seed % 2])
        latents = torch.randn(3, 4, 6)
        prompts = [torch.randint(3, 20, (n,)).tolist() for n in (4, 1, 3)]
        candidates = some_candidates(10)
        smoothings = (0.1, 0.0)
        plain = one_by_one(decoder, latents, prompts, candidates, smoothings)
        ids, mask = padded(prompts, decoder.config.pad_id)
        for expected, smoothing in zip(plain, smoothings):
            scores = rank(decoder, latents, ids, candidates, mask, smoothing=smoothing)
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
            assert scores.argmax(1).tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("rows", [512, 3])
def test_shortlist_keeps_the_best_first_tokens_and_their_scores(monkeypatch, rows):
    monkeypatch.setattr(ranking, "ROWS", rows)
    for seed in range(6):
        decoder = make(seed, (BERT, ROBERTA)[seed % 2])
        latents, candidates = torch.randn(3, 4, 6), some_candidates(10)
        ids = torch.randint(3, 20, (3, 4))
        everything = rank(decoder, latents, ids, candidates)
        few = rank(decoder, latents, ids, candidates, shortlist=4)
        for b in range(3):
            with torch.no_grad():
                after = decoder(ids[b : b + 1], latents[b : b + 1])[0, -1].softmax(-1)
            firsts = [-float(after[candidate[0]]) for candidate in candidates]
            best = sorted(range(10), key=lambda k: firsts[k])[:4]  # equal ones: as they come
            assert few[b].isfinite().nonzero().flatten().tolist() == sorted(best)
            torch.testing.assert_close(few[b, best], everything[b, best], atol=1e-5, rtol=1e-5)
        assert torch.equal(rank(decoder, latents, ids, candidates, shortlist=99), everything)


def test_tree_by_hand():
    tree = make_tree([[5, 6, 2], [5, 2], [7, 2], [5, 6, 8, 2], [2]], 4)
    # Beginnings: 5 | 5 6 | 7 | 5 6 8. No candidate goes on from its last token.
    assert tree.tokens.tolist() == [5, 6, 7, 8]
    assert tree.depths.tolist() == [1, 2, 1, 3]
    assert tree.paths.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 2], [0, 1, 3, 3]]
    # 0 is the prompt; node n is n + 1.
    assert tree.readers.tolist() == [
        [0, 1, 2, -1],
        [0, 1, -1, -1],
        [0, 3, -1, -1],
        [0, 1, 2, 4],
        [0, -1, -1, -1],
    ]


def test_every_beginning_is_computed_once():
    decoder, seen = make(0), []
    decoder.words.register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    candidates = [[5, 6, 2], [5, 2], [7, 2], [5, 6, 8, 2], [5, 6, 2]]
    rank(decoder, torch.randn(2, 4, 6), torch.tensor([[3, 4], [3, 5]]), candidates)
    assert seen == [4, 2 * 4]  # two prompts of 2; then 5 | 5 6 | 7 | 5 6 8 for each image


def test_one_token_by_hand():
    """A candidate that is an end mark alone scores its log probability behind the prompt."""
    decoder, latents = make(0), torch.randn(1, 4, 6)
    ids = torch.tensor([[3, 4]])
    with torch.no_grad():
        expected = decoder(ids, latents)[:, -1].log_softmax(-1)[:, [END, 7]]
    scores = rank(decoder, latents, ids, [[END], [7]], smoothing=0.0)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)


def test_other_prompts_of_the_batch_change_nothing():
    decoder, candidates = make(1, ROBERTA), some_candidates(8)
    latents = torch.randn(3, 4, 6)
    prompts = [[3, 4, 5, 6], [7], [8, 9]]
    ids, mask = padded(prompts, 1)
    together = rank(decoder, latents, ids, candidates, mask)
    for b, prompt in enumerate(prompts):
        alone = rank(decoder, latents[b : b + 1], torch.tensor([prompt]), candidates)
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        ([], {}, "candidate_ids is empty: give one candidate or more"),
        ([[5, 2], []], {}, "Candidate 1 is empty"),
        ([[5] * 9], {}, "Candidate 0 has 9 tokens and the prompt 2, .* 10 positions"),
        ([[5, 20]], {}, "candidate_ids holds 20, outside the vocabulary of 20"),
        ([[5, -2]], {}, "candidate_ids holds -2"),
        ([[5, 2]], {"shortlist": 0}, "shortlist=0 must be 1 or more"),
        ([[5, 2]], {"smoothing": 1.0}, "smoothing=1.0"),
        ([[5, 2]], {"attention_mask": torch.tensor([[0, 0]])}, "Prompt 0 has no token"),
    ],
)
def test_bad_input(candidates, options, message):
    with pytest.raises(InputError, match=message):
        rank(make(0), torch.zeros(1, 4, 6), torch.tensor([[3, 4]]), candidates, **options)


@pytest.mark.parametrize("prompt", [torch.tensor([3, 4]), torch.zeros(1, 0, dtype=torch.long)])
def test_a_prompt_that_is_none(prompt):
    with pytest.raises(InputError, match=r"prompt_ids has shape"):
        rank(make(0), torch.zeros(1, 4, 6), prompt, [[5, 2]])


def test_candidates_that_are_numbers():
    with pytest.raises(InputError, match="a list of token ids for each"):
        rank(make(0), torch.zeros(1, 4, 6), torch.tensor([[3, 4]]), [5, 2])


def test_latents_that_do_not_fit():
    with pytest.raises(InputError, match=r"latents has shape \(1, 4, 5\)"):
        rank(make(0), torch.zeros(1, 4, 5), torch.tensor([[3, 4]]), [[5, 2]])
    with pytest.raises(InputError, match="1 prompts for 2 images"):
        rank(make(0), torch.zeros(2, 4, 6), torch.tensor([[3, 4]]), [[5, 2]])
