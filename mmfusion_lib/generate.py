"""Writing a text word by word: greedy, beam search and sampling over a ``Decoder`` with its cache.

Beam search is that of transformers 4.26, with which the published figures were made. A text scores

    sum of log p(token) / length ** length_penalty

where length counts the prompt and the new tokens but not the end mark; later versions count
otherwise. A text may end once ``min_length`` tokens stand before the mark, and is cut at
``max_length`` tokens. All lengths count the words of a text's own prompt and never padding: so
nothing depends on what else is in the batch. Shapes: B images, A those whose text goes on,
N_p tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .beams import Scored, beam_search
from .decoder import Decoder
from .errors import InputError
from .sampling import Sampler

OneOrEach = int | Sequence[int]
Choice = Callable[[Tensor, list[int], int], Tensor]


class Generated(NamedTuple):
    """Texts and how likely they are."""

    ids: Tensor  # (B, N): padding, prompt, new tokens, padding
    scores: Tensor  # (B,) sum of log p / length ** length_penalty


class Step(NamedTuple):
    """What greedy decoding weighed up at one place."""

    images: list[int]  # the A images whose text goes on
    tokens: Tensor  # (A,) the token that was taken
    alternatives: Tensor  # (A, k) token ids, the most probable first
    probabilities: Tensor  # (A, k)


class Task(NamedTuple):
    """Checked input of a search."""

    ids: Tensor  # (B, N_p), packed to the left
    mask: Tensor  # (B, N_p) boolean
    prompts: list[int]  # tokens of each prompt
    longest: list[int]  # max_length of each text
    shortest: list[int]  # min_length of each text
    eos_id: int | None

    def log_probabilities(self, logits: Tensor, images: list[int], written: int) -> Tensor:
        """(A * G, V) -> the same in float32; the end is impossible where a text is too short."""
        logs = logits.float().log_softmax(dim=-1)
        short = [self.prompts[image] + written < self.shortest[image] for image in images]
        if self.eos_id is not None and any(short):
            rows = torch.tensor(short, device=logs.device).repeat_interleave(
                len(logs) // len(images)
            )
            logs[rows, self.eos_id] = float("-inf")
        return logs


def generate(
    decoder: Decoder,
    latents: Tensor,
    prompt_ids: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """``generate_scored`` without the scores: (B, N), prompt included."""
    return generate_scored(decoder, latents, prompt_ids, attention_mask, **options).ids


@torch.no_grad()
def generate_scored(
    decoder: Decoder,
    latents: Tensor,
    prompt_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    num_beams: int = 3,
    max_length: OneOrEach = 20,
    min_length: OneOrEach = 8,
    eos_id: int | None = None,
    pad_id: int | None = None,
    length_penalty: float = 1.0,
    exact_stop: bool = False,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: OneOrEach = 0,
) -> Generated:
    """Go on from prompts.

    Args:
        decoder: in evaluation mode, else dropout acts.
        latents: (B, L, D_v).
        prompt_ids: (B, N_p); padding may stand anywhere, the result is packed to the left.
        attention_mask: (B, N_p), 1 = a token; None: no padding.
        num_beams: texts kept open for each image; 1 takes the most probable token each time.
        max_length, min_length: in tokens, prompt included; one for all texts or one for each.
        eos_id: the mark that ends a text; None: all texts run to ``max_length``.
        pad_id: stands behind a text that has ended; None: the encoder's.
        length_penalty: above 0 favours long texts, below 0 short ones.
        exact_stop: published beam search ends once the best open text scores, at its present
            length, no better than the worst of ``num_beams`` ended ones, though it might have
            overtaken them later; True goes on until none can win.
        sample: draw one text for each image instead; ``num_beams`` is not used.
        temperature, top_k, top_p: sampling: divide the logits; keep the k most probable tokens; of
            these keep the fewest that have probability ``top_p`` together.
        seed: sampling: one for each text, or that of the first, from which the others count up.

    Raises:
        InputError: an option is out of range, a prompt is empty or fills ``max_length``, or what
            ``Decoder.forward`` refuses.
    """
    task = _task(decoder, latents, prompt_ids, attention_mask, max_length, min_length, eos_id)
    if sample:
        seeds = [seed + b for b in range(len(task.ids))] if isinstance(seed, int) else list(seed)
        draw = Sampler(temperature, top_k, top_p, _each("seed", seeds, task.ids), task.longest)
        texts = _collect(_singles(decoder, latents, task, draw), task, length_penalty)
    elif num_beams == 1:
        texts = _collect(_singles(decoder, latents, task, _top), task, length_penalty)
    elif 1 < num_beams < decoder.config.vocab_size / 2:
        texts = beam_search(decoder, latents, task, num_beams, length_penalty, exact_stop)
    else:
        raise InputError(
            f"num_beams={num_beams} must be 1 or more and below half of the vocabulary, "
            f"{decoder.config.vocab_size}: published is 3."
        )
    pad_id = decoder.config.pad_id if pad_id is None else pad_id
    longest = max(len(words) for _, words in texts)
    new = [words + [pad_id] * (longest - len(words)) for _, words in texts]
    prompts = task.ids.masked_fill(~task.mask, pad_id)
    ids = torch.cat([prompts, torch.tensor(new, device=prompts.device)], dim=1)  # (B, N)
    return Generated(ids, torch.tensor([score for score, _ in texts], device=ids.device))


@torch.no_grad()
def alternatives(
    decoder: Decoder,
    latents: Tensor,
    prompt_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    count: int = 5,
    max_length: OneOrEach = 20,
    min_length: OneOrEach = 8,
    eos_id: int | None = None,
) -> Iterator[Step]:
    """Greedy decoding one ``Step`` at a time, each with its ``count`` most probable tokens."""
    task = _task(decoder, latents, prompt_ids, attention_mask, max_length, min_length, eos_id)
    for images, logs, taken in _singles(decoder, latents, task, _top):
        found = logs.exp().topk(min(count, logs.shape[1]))
        yield Step(images, taken, found.indices, found.values)


def left_packed(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move padding in front of the tokens, whose order stays: (B, N) twice, the mask boolean."""
    if mask is None:
        return ids, torch.ones_like(ids).bool()
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)} but prompt_ids {tuple(ids.shape)}: give "
            "one value a token, 1 to keep and 0 to hide."
        )
    mask, order = mask.bool().sort(dim=1, stable=True)
    if not mask.any(dim=1).all():
        raise InputError(
            f"Prompt {int(mask.any(dim=1).long().argmin())} has no token: begin at least with the "
            "start mark."
        )
    first = int(mask.any(dim=0).long().argmax())  # columns that are padding for all go
    return ids.gather(1, order)[:, first:], mask[:, first:]


def _top(logs: Tensor, images: list[int], written: int) -> Tensor:
    return logs.argmax(dim=1)  # (A, V) -> (A,)


def _singles(
    decoder: Decoder, latents: Tensor, task: Task, choose: Choice
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """One text an image. At each place: images (A), log probabilities (A, V), tokens taken (A,)."""
    images, written = list(range(len(task.ids))), 0
    cache = decoder.start(latents)
    tokens = decoder.advance(task.ids, cache, task.mask)
    while True:
        logs = task.log_probabilities(decoder.logits(tokens[:, -1]), images, written)
        taken = choose(logs, images, written)
        yield images, logs, taken
        written += 1
        going = [
            a
            for a, (image, word) in enumerate(zip(images, taken.tolist()))
            if word != task.eos_id and task.prompts[image] + written < task.longest[image]
        ]
        if not going:
            return
        if len(going) < len(images):  # what has ended is computed no more
            rows = torch.tensor(going, device=taken.device)
            cache, taken, images = cache.select(rows, rows), taken[rows], [images[a] for a in going]
        tokens = decoder.advance(taken[:, None], cache)  # (A, 1, D)


def _collect(
    steps: Iterator[tuple[list[int], Tensor, Tensor]], task: Task, length_penalty: float
) -> list[Scored]:
    words: list[list[int]] = [[] for _ in task.prompts]
    totals = [0.0] * len(words)
    for images, logs, taken in steps:
        gained = logs.gather(1, taken[:, None])[:, 0]  # (A, V) -> (A,)
        for image, word, gain in zip(images, taken.tolist(), gained.tolist()):
            words[image].append(word)
            totals[image] += gain
    lengths = [n + len(new) - (new[-1] == task.eos_id) for n, new in zip(task.prompts, words)]
    return [(t / n**length_penalty, new) for t, n, new in zip(totals, lengths, words)]


def _task(
    decoder: Decoder,
    latents: Tensor,
    prompt_ids: Tensor,
    mask: Tensor | None,
    max_length: OneOrEach,
    min_length: OneOrEach,
    eos_id: int | None,
) -> Task:
    if prompt_ids.ndim != 2 or 0 in prompt_ids.shape or len(prompt_ids) != len(latents):
        raise InputError(
            f"prompt_ids has shape {tuple(prompt_ids.shape)} for {len(latents)} images: give one "
            "prompt (B, N) for each, of one token or more."
        )
    ids, mask = left_packed(prompt_ids, mask)
    prompts = mask.sum(dim=1).tolist()
    most, least = _each("max_length", max_length, ids), _each("min_length", min_length, ids)
    for prompt, longest in zip(prompts, most):
        if not prompt < longest <= decoder.config.max_positions:
            raise InputError(
                f"max_length={longest} must be above the {prompt} tokens of the prompt and at most "
                f"the {decoder.config.max_positions} positions of the decoder: choose another."
            )
    return Task(ids, mask, prompts, most, least, eos_id)


def _each(name: str, value: OneOrEach, ids: Tensor) -> list[int]:
    values = [value] * len(ids) if isinstance(value, int) else [int(n) for n in value]
    if len(values) != len(ids):
        raise InputError(
            f"{name} has {len(values)} values for {len(ids)} prompts: give one for all, or one for "
            "each."
        )
    return values
