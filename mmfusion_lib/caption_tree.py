"""The tree of a caption: which words were weighed up at each place, and where Prismer looked.

A node stands for a beginning of the caption. It holds the most probable next words, the one that was
taken, and the cross-attention of the decoder when it chose: the mean over heads and over layers, whose
query is the last word before. In a tree with branches every other word of the trunk that is no less likely
than ``LEAST`` has been followed too, once, greedily. Shapes: G texts of one image, L vision tokens, N text
tokens, D width, V vocabulary.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from . import prismer_text
from .decoder import check_ids
from .decoder_layer import Cache
from .errors import InputError

if TYPE_CHECKING:
    from .prismer import Prismer

UNKNOWN, ENDS = -1, -2  # in place of a node: nobody has looked; the text ends here
TEXTS = 64  # branches followed at a time
LEAST = 0.02  # probability of a word that is followed
LIMITS = {"beams": (1, 8), "length": (2, 64), "shortest": (0, 64), "temperature": (0.0, 5.0)}


@dataclass(frozen=True)
class Writing:
    """How a caption is written.

    Attributes:
        beams: of beam search; 1 takes the most probable word each time.
        length, shortest: most and fewest tokens, prompt included; the end mark is not counted.
        temperature: 0: as ``beams`` says; above 0 a text is drawn, and ``beams`` is not used.
        seed: of the draw.

    Raises:
        InputError: a value that is no number, or out of range.
    """

    beams: int = 1
    length: int = 20
    shortest: int = 8
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            kind = float if name == "temperature" else int
            if isinstance(value, bool) or not isinstance(value, (int, kind)):
                raise InputError(f"{name} is {value!r}: give a number from {low} to {high}.")
            if not low <= value <= high:
                raise InputError(f"{name} is {value}: use {low} to {high}.")
        if type(self.seed) is not int:
            raise InputError(f"seed is {self.seed!r}: give a whole number.")

    def options(self) -> dict[str, Any]:
        """For ``Prismer.generate``."""
        found = {"num_beams": self.beams, "max_length": self.length, "min_length": self.shortest}
        if self.temperature:
            found |= {"sample": True, "temperature": self.temperature, "seed": self.seed}
        return found


class Choice(NamedTuple):
    """A word that was weighed up."""

    token: int
    probability: float  # at temperature 1
    node: int  # what follows it: a node, UNKNOWN or ENDS


class Node(NamedTuple):
    """A beginning of the caption, and how it may go on."""

    choices: list[Choice]  # the most probable first
    taken: int  # which of them the text goes on with
    look: Tensor  # (L,) where the decoder looked when it chose; sums to 1


@torch.no_grad()
def grow(
    model: Prismer,
    latents: Tensor,
    prompt: Sequence[int],
    writing: Writing,
    *,
    prefix: Sequence[int] = (),
    count: int = 4,
    branches: bool = False,
) -> list[Node]:
    """The nodes of a caption; node 0 is the prompt alone, and the trunk comes first, in order.

    Args:
        model: in evaluation mode, with its tokenizer.
        latents: (1, L, D) of ``Prismer.encode``.
        prompt: token ids, begin mark first.
        writing: how the trunk goes on after ``prefix``; branches are greedy and as long.
        prefix: words behind the prompt that are given, not chosen.
        count: words at each node; that which was taken is always one of them, the last if need be.
        branches: follow the others of the trunk too, down to a probability of ``LEAST``.

    Raises:
        InputError: the prompt fills ``writing.length``, or an id is outside the vocabulary.
    """
    decoder, start, text = model.decoder, len(prompt), [*prompt, *prefix]
    end, vocabulary = prismer_text.end_id(model.tokenizer), decoder.config.vocab_size
    check_ids(torch.tensor(text), vocabulary, "The caption")
    if not prefix or (text[-1] != end and len(text) < writing.length):
        text = write(model, latents, text, writing)
    ids = torch.tensor([text], device=latents.device)  # (1, N)
    cache = decoder.start(latents)
    with watched(decoder.layers) as looks:
        tokens = decoder.advance(ids, cache)[0, start - 1 : -1]  # the token at n is chosen at n - 1
    look = torch.stack(looks).mean(0)[0, start - 1 : -1]  # layers x (1, N, L) -> (n, L)
    standing = range(start, len(text))
    nodes = weigh(model, tokens, look, standing, count, writing.shortest, text[start:])
    for place, node in enumerate(nodes):
        _lead(node, node.taken, place + 1 if place + 1 < len(nodes) else ENDS)
    if branches:
        todo = [
            (place, number)
            for place, node in enumerate(nodes)
            for number, choice in enumerate(node.choices)
            if number != node.taken and choice.probability >= LEAST
        ]
        for first in range(0, len(todo), TEXTS):
            _branch(model, nodes, todo[first : first + TEXTS], cache, start, writing, count)
    return nodes


def write(model: Prismer, latents: Tensor, start: Sequence[int], writing: Writing) -> list[int]:
    """Go on from ``start`` about one image (1, L, D): the whole text, with its end mark."""
    end = prismer_text.end_id(model.tokenizer)
    ids = torch.tensor([start], device=latents.device)
    row = model.generate(latents, ids, **writing.options())[0, len(start) :].tolist()
    return [*start, *(row[: row.index(end) + 1] if end in row else row)]


def weigh(
    model: Prismer,
    tokens: Tensor,
    looks: Tensor,
    standing: Sequence[int],
    count: int,
    shortest: int,
    taken: Sequence[int] | None = None,
) -> list[Node]:
    """What is weighed up at n places.

    Args:
        tokens: (n, D) of the decoder.
        looks: (n, L) its attention there.
        standing: n, how many tokens stand there already. As in ``generate`` the end mark has
            probability 0 where these are fewer than ``shortest``.
        count: words at each place.
        shortest: see above.
        taken: n, the words that followed; None: the most probable.
    """
    end = prismer_text.end_id(model.tokenizer)
    chances = model.decoder.logits(tokens).float().softmax(dim=-1)  # (n, D) -> (n, V)
    early = torch.tensor([number < shortest for number in standing], device=tokens.device)
    chances[early, end] = 0
    top = chances.topk(min(count, chances.shape[-1]))
    nodes = []
    for place, (words, values) in enumerate(zip(top.indices.tolist(), top.values.tolist())):
        token = words[0] if taken is None else taken[place]
        if token not in words:  # drawn, or given by a reader
            words[-1], values[-1] = token, float(chances[place, token])
        choices = [Choice(*pair, UNKNOWN) for pair in zip(words, values)]
        nodes.append(Node(choices, words.index(token), looks[place]))
    return nodes


def _branch(
    model: Prismer,
    nodes: list[Node],
    todo: list[tuple[int, int]],
    trunk: Cache,
    start: int,
    writing: Writing,
    count: int,
) -> None:
    """Follow R choices (node, number) of the trunk greedily, all at once, and append their nodes."""
    decoder, end, rows = model.decoder, prismer_text.end_id(model.tokenizer), len(todo)
    standing = [start + place for place, _ in todo]  # tokens of each text
    # Every text begins as the trunk does: its words from there on are hidden like padding.
    own = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in trunk.own]
    words = torch.tensor(standing, device=trunk.mask.device)  # (R,)
    mask = torch.arange(trunk.mask.shape[1], device=words.device) < words[:, None]  # (R, T)
    cache = Cache(trunk.cross, own, mask, words)
    open_ = [(*choice, standing[row]) for row, choice in enumerate(todo)]
    new = [nodes[place].choices[number].token for place, number in todo]
    while True:
        going = []
        for row, (node, number, length) in enumerate(open_):
            if new[row] == end or length + 1 >= writing.length:
                _lead(nodes[node], number, ENDS)
            else:
                going.append(row)
        if not going:
            return
        if len(going) < len(open_):
            cache = cache.select(torch.tensor(going, device=words.device))
        ids = torch.tensor([[new[row]] for row in going], device=words.device)  # (R, 1)
        with watched(decoder.layers) as looks:
            tokens = decoder.advance(ids, cache)[:, 0]  # (R, 1, D) -> (R, D)
        look = torch.stack(looks).mean(0)[:, 0]  # layers x (R, 1, L) -> (R, L)
        lengths = [open_[row][2] + 1 for row in going]
        found = weigh(model, tokens, look, lengths, count, writing.shortest)
        first = len(nodes)
        for place, row in enumerate(going):
            _lead(nodes[open_[row][0]], open_[row][1], first + place)
        nodes += found
        open_ = [(first + place, 0, length) for place, length in enumerate(lengths)]
        new = [node.choices[0].token for node in found]


def _lead(node: Node, number: int, to: int) -> None:
    """What follows a choice."""
    node.choices[number] = node.choices[number]._replace(node=to)


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that is filled, layer by layer, with cross-attention (R, n, L), the mean over heads.

    The fast attention of ``CrossAttention`` keeps no weights, so they are computed beside it, from the
    same queries and keys.
    """
    looks: list[Tensor] = []

    def note(cross: Any, given: tuple[Tensor, Tensor, Tensor], _: Tensor) -> None:
        tokens, keys, _ = given  # (R, n, D), (B, H, L, D / H)
        asked = tokens.reshape(len(keys), -1, tokens.shape[-1])  # (B * G, n, D) -> (B, G * n, D)
        query = cross._split(cross.query(asked))  # (B, H, G * n, D / H)
        scores = query @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5  # (B, H, G * n, L)
        weights = scores.softmax(dim=-1).mean(dim=1)  # (B, G * n, L)
        looks.append(weights.reshape(*tokens.shape[:2], -1))  # (R, n, L)

    hooks = [layer.cross.register_forward_hook(note) for layer in layers]
    try:
        yield looks
    finally:
        for hook in hooks:
            hook.remove()


def stored(nodes: Sequence[Node], model: Prismer) -> dict[str, Any]:
    """Nodes as JSON: each ``[taken, [[token, probability, node], ...]]``, words, and looks in 8 bits.

    A look (L,) is kept as ``round(255 * sqrt(look / max(look)))``: the root keeps small shares. Divided
    by their sum, the squares are the shares again. All rows follow each other in base64.
    """
    looks = torch.stack([node.look for node in nodes])  # (nodes, L)
    bytes_ = (255 * (looks / looks.amax(dim=1, keepdim=True)).sqrt()).round().to(torch.uint8)
    tokens = dict.fromkeys(choice.token for node in nodes for choice in node.choices)
    return {
        "nodes": [
            [node.taken, [[c.token, float(f"{c.probability:.3g}"), c.node] for c in node.choices]]
            for node in nodes
        ],
        "words": {str(token): piece(model, token) for token in tokens},
        "looks": base64.b64encode(bytes_.cpu().numpy().tobytes()).decode(),
        "width": looks.shape[1],
        "end": prismer_text.end_id(model.tokenizer),
    }


def piece(model: Prismer, token: int) -> list[Any]:
    """A token as it is read, and 1 where it goes on the word before it."""
    (name,), text = model.tokenizer.tokens([token]), model.tokenizer.decode([token]).strip()
    if name.startswith("##"):  # word pieces
        return [name.removeprefix("##"), 1]
    if model.config.text.position_offset:  # byte pairs: a word begins with a space
        return [text or name, int(not name.startswith("\u0120"))]
    return [text or name, 0]
