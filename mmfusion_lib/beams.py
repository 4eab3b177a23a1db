"""Beam search over a ``Decoder``: the few most probable beginnings go on, the best ended text wins.

The rules are those of the beam scorer of transformers 4.26, see ``generate``. Shapes: A images
whose search goes on, K beams, G texts open for each image (1 at first, then K), V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .decoder import Decoder

if TYPE_CHECKING:
    from .generate import Task

Scored = tuple[float, list[int]]  # score, new words


class Ended:
    """The best ``beams`` ended texts of one image."""

    def __init__(self, beams: int, length_penalty: float):
        self.beams, self.length_penalty = beams, length_penalty
        self.texts: list[Scored] = []  # the best first

    def add(self, words: list[int], total: float, length: int) -> None:
        """Keep a text of ``length`` tokens and log probability ``total`` if it is good enough."""
        self.texts.append((self.score(total, length), words))
        self.texts.sort(key=lambda text: -text[0])
        del self.texts[self.beams :]

    def score(self, total: float, length: int) -> float:
        """sum of log p / length ** penalty."""
        return total / length**self.length_penalty

    def beaten(self, total: float, length: int) -> bool:
        """Could a text of this sum and length no longer enter?"""
        full = len(self.texts) == self.beams
        return full and self.texts[-1][0] >= self.score(total, length)


def beam_search(
    decoder: Decoder, latents: Tensor, task: Task, beams: int, length_penalty: float, exact: bool
) -> list[Scored]:
    """The best text of each image; arguments as in ``generate.generate_scored``."""
    images = list(range(len(task.prompts)))
    ended = [Ended(beams, length_penalty) for _ in images]
    opened: list[list[list[int]]] = [[[]] for _ in images]  # new words of each open text: A, G, n
    cache = decoder.start(latents)
    tokens = decoder.advance(task.ids, cache, task.mask)
    sums = torch.zeros(len(images), 1, device=latents.device)  # log p of each open text, (A, G)
    for written in range(max(task.longest)):
        logs = task.log_probabilities(decoder.logits(tokens[:, -1]), images, written)  # (A * G, V)
        each = sums[..., None] + logs.unflatten(0, sums.shape)  # (A, G, V)
        best, places = each.flatten(1).topk(2 * beams)  # (A, G * V) -> (A, 2 * K), best first
        vocabulary, several = logs.shape[1], sums.shape[1]
        kept, rows, grown, totals = [], [], [], []
        for a, image in enumerate(images):
            found = zip(best[a].tolist(), places[a].tolist())
            found = [(total, *divmod(place, vocabulary)) for total, place in found]
            length = task.prompts[image] + written  # tokens before the new one
            going = [one for one in found if one[2] != task.eos_id][:beams]
            for total, text, word in found[:beams]:  # an end further down is not taken
                if word == task.eos_id:
                    ended[image].add([*opened[a][text], word], total, length)
            if exact:
                reach = task.longest[image] if length_penalty > 0 else length + 1
                stop = ended[image].beaten(going[0][0], reach)
            else:
                stop = ended[image].beaten(found[0][0], length)
            if stop:
                continue
            longer = [[*opened[a][text], word] for _, text, word in going]
            if length + 1 == task.longest[image]:  # cut, with no end mark
                for words, (total, _, _) in zip(longer, going):
                    ended[image].add(words, total, length + 1)
                continue
            kept.append(a)
            grown.append(longer)
            rows += [a * several + text for _, text, _ in going]
            totals.append([total for total, _, _ in going])
        if not kept:
            break
        index = torch.tensor(rows, device=latents.device)
        some = None if len(kept) == len(images) else torch.tensor(kept, device=latents.device)
        cache = cache.select(index, some)
        images, opened = [images[a] for a in kept], grown
        sums = torch.tensor(totals, device=latents.device)
        last = [[words[-1]] for texts in opened for words in texts]
        tokens = decoder.advance(torch.tensor(last, device=latents.device), cache)  # (A * K, 1, D)
    return [one.texts[0] for one in ended]
