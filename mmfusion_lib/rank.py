"""Scoring given answers: every distinct beginning of an answer is computed once.

The official code runs prompt, vision tokens and answer through the decoder for each candidate. But
candidates share the prompt, and many share their first tokens. Here the prompt is computed once;
the beginnings of all candidates form a tree, and each of its nodes is one token that sees the
prompt, its ancestors and itself. No text is copied: the nodes stand side by side, and a mask says
who sees whom.

Shapes: B images, K candidates of up to M tokens, N nodes, P tokens of the prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .decoder import Decoder, check_ids
from .decoder_layer import Cache
from .errors import InputError
from .generate import left_packed

ROWS = 512  # nodes computed at a time, over all images: bounds the logits in memory


class Tree(NamedTuple):
    """The beginnings of some candidates; parents come before their children."""

    tokens: Tensor  # (N,) the last token of each beginning
    depths: Tensor  # (N,) tokens of each beginning
    paths: Tensor  # (N, M) nodes from the first token to the last, which is then repeated
    readers: Tensor  # (K, M) node after which a candidate's token comes, 0 = the prompt, n + 1 =
    # node n; -1: the candidate has ended

    def to(self, device: torch.device) -> Tree:
        return Tree(*(part.to(device) for part in self))


def make_tree(candidates: Sequence[Sequence[int]], longest: int) -> Tree:
    """The tree of some candidates of at most ``longest`` = M tokens; last tokens are no nodes."""
    nodes: dict[tuple[int, ...], int] = {}
    paths, readers = [], []
    for candidate in candidates:
        path: list[int] = []
        for end in range(1, len(candidate)):
            path.append(nodes.setdefault(tuple(candidate[:end]), len(nodes)))
            if path[-1] == len(paths):  # a new node
                paths.append(path + path[-1:] * (longest - end))
        readers.append([0, *(node + 1 for node in path)] + [-1] * (longest - len(candidate)))
    return Tree(
        torch.tensor([start[-1] for start in nodes], dtype=torch.long),
        torch.tensor([len(start) for start in nodes], dtype=torch.long),
        torch.tensor(paths, dtype=torch.long).reshape(-1, longest),  # (N, M), also where N = 0
        torch.tensor(readers),
    )


@torch.no_grad()
def rank(
    decoder: Decoder,
    latents: Tensor,
    prompt_ids: Tensor,
    candidate_ids: Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    *,
    shortlist: int | None = None,
    smoothing: float = 0.1,
) -> Tensor:
    """Score every candidate as the continuation of every prompt (official code).

    The score is minus the loss of the candidate's tokens, divided by their number.

    Args:
        decoder: in evaluation mode, else dropout acts.
        latents: (B, L, D_v).
        prompt_ids: (B, P); padding may stand anywhere.
        candidate_ids: K lists of token ids, end mark included.
        attention_mask: (B, P), 1 = a token; None: no padding.
        shortlist: score only the candidates whose *first* token is most probable, this many for
            each image, as published (16 for VQA, 32 for ImageNet); None: all, exactly.
        smoothing: label smoothing in the loss. Published is 0.1, which mixes the mean over the
            vocabulary into the score; 0 gives the mean log probability of a token.

    Returns:
        (B, K) float32; -inf outside the shortlist.

    Raises:
        InputError: no candidates, an empty one, one that does not fit behind a prompt or has an id
            outside the vocabulary, an option out of range, or what ``Decoder.forward`` refuses.
    """
    if any(isinstance(candidate, int) for candidate in candidate_ids):
        raise InputError(
            "candidate_ids holds a number: give a list of token ids for each candidate."
        )
    candidates = [[int(token) for token in candidate] for candidate in candidate_ids]
    if prompt_ids.ndim != 2 or not prompt_ids.shape[1]:
        raise InputError(
            f"prompt_ids has shape {tuple(prompt_ids.shape)}: give (B, P), one token or more."
        )
    if len(prompt_ids) != len(latents):
        raise InputError(
            f"There are {len(prompt_ids)} prompts for {len(latents)} images: give one for each."
        )
    ids, mask = left_packed(prompt_ids, attention_mask)
    lengths = mask.sum(dim=1)  # (B,)
    _check(decoder, candidates, int(lengths.max()), shortlist, smoothing)
    cache = decoder.start(latents)
    first = decoder.logits(decoder.advance(ids, cache, mask)[:, -1]).float()  # (B, V)
    targets = pad_sequence([torch.tensor(c) for c in candidates], batch_first=True)  # (K, M)
    targets = targets.to(ids.device)
    scores = first.new_full((len(ids), len(candidates)), float("-inf"))
    if shortlist is None or shortlist >= len(candidates):
        chosen = torch.arange(len(candidates), device=ids.device).expand(len(ids), -1)
        trees = [make_tree(candidates, targets.shape[1]).to(ids.device)] * len(ids)
    else:
        order = first[:, targets[:, 0]].argsort(dim=1, descending=True, stable=True)  # (B, K)
        chosen = order[:, :shortlist].sort(dim=1).values  # (B, shortlist)
        lists = [[candidates[k] for k in row] for row in chosen.tolist()]
        trees = [make_tree(each, targets.shape[1]).to(ids.device) for each in lists]
    together = max(1, ROWS // max(1, max(len(tree.tokens) for tree in trees)))  # images at a time
    for begin in range(0, len(ids), together):
        rows = slice(begin, begin + together)
        found = _losses(
            decoder, cache.select(rows, rows), first[rows], lengths[rows], trees[rows],
            targets[chosen[rows]], smoothing,
        )  # fmt: skip
        scores[rows] = scores[rows].scatter(1, chosen[rows], -found)
    return scores


def _losses(
    decoder: Decoder,
    cache: Cache,
    first: Tensor,
    lengths: Tensor,
    trees: list[Tree],
    targets: Tensor,
    smoothing: float,
) -> Tensor:
    """Mean loss of the tokens of each candidate.

    Args:
        cache: holds the prompts of G images.
        first: (G, V) logits behind the prompts.
        lengths: (G,) tokens of the prompts.
        trees: one for each image, all of k candidates.
        targets: (G, k, M) their tokens.

    Returns:
        (G, k).
    """
    tokens = pad_sequence([tree.tokens for tree in trees], batch_first=True)  # (G, N)
    depths = pad_sequence([tree.depths for tree in trees], batch_first=True)  # (G, N)
    paths = pad_sequence([tree.paths for tree in trees], batch_first=True)  # (G, N, M)
    readers = torch.stack([tree.readers for tree in trees])  # (G, k, M)
    each = first.new_zeros(readers.shape)  # loss of each token

    def note(logits: Tensor, start: int) -> None:
        """Take the losses that the logits (G, n, V) of nodes start, start + 1, ... decide."""
        image, candidate, place = torch.where(
            (readers >= start) & (readers < start + logits.shape[1])
        )
        node = readers[image, candidate, place] - start
        wanted = logits[image, node, targets[image, candidate, place]]
        constant = logits.logsumexp(dim=-1) - smoothing * logits.mean(dim=-1)  # (G, n)
        each[image, candidate, place] = constant[image, node] - (1 - smoothing) * wanted

    note(first[:, None], 0)
    prompt = cache.mask[:, None].expand(-1, ROWS, -1)  # (G, ROWS, P)
    for start in range(0, tokens.shape[1], ROWS):
        nodes = slice(start, start + ROWS)
        new = tokens[:, nodes]  # (G, n)
        seen = prompt.new_zeros(*new.shape, start + new.shape[1])  # (G, n, nodes so far)
        seen.scatter_(2, paths[:, nodes], True)
        keep = torch.cat([prompt[:, : new.shape[1]], seen], dim=2)[:, None]  # (G, 1, n, P + ...)
        count = lengths[:, None] + depths[:, nodes]
        note(decoder.logits(decoder.run(new, count, keep, cache)).float(), start + 1)
    return each.sum(dim=2) / (readers >= 0).sum(dim=2)


def _check(
    decoder: Decoder,
    candidates: list[list[int]],
    prompt: int,
    shortlist: int | None,
    smoothing: float,
) -> None:
    if not candidates:
        raise InputError("candidate_ids is empty: give one candidate or more.")
    window = decoder.config.max_positions
    for number, candidate in enumerate(candidates):
        if not candidate:
            raise InputError(f"Candidate {number} is empty: give it its end mark at least.")
        if prompt + len(candidate) > window:
            raise InputError(
                f"Candidate {number} has {len(candidate)} tokens and the prompt {prompt}, but this "
                f"decoder has {window} positions: shorten one of the two."
            )
    flat = torch.tensor([token for candidate in candidates for token in candidate])
    check_ids(flat, decoder.config.vocab_size, "candidate_ids")
    if shortlist is not None and shortlist < 1:
        raise InputError(f"shortlist={shortlist} must be 1 or more, or None for all candidates.")
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing={smoothing} must be at least 0 and below 1: published is 0.1.")
