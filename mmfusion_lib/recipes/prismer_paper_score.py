"""How Prismer's stages at paper scale are tested: captions are written, answers and names are ranked.

The rows of a test are shared out over the processes of ``accelerate launch``; each then has all texts.
Where the truth is not at hand, a file for the challenge's server is written instead of a score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from .. import caption_metrics, prismer_text, vqa_metrics
from ..data import nocaps, vqav2
from ..experts import tensors
from ..prismer import Prismer
from ..runs import Settings
from .prismer_paper_data import PaperItems

UNITS = {  # last word of a metric's name -> unit
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "rouge": "ROUGE-L",
    "accuracy": "accuracy",
    "written": "texts for the server",
}


def score(
    s: Settings, model: Prismer, items: PaperItems, root: Path, file: Path
) -> list[tuple[str, float]]:
    """Metrics of all items, by name; of NoCaps by domain, too.

    Without references or answers, ``file`` is written for the server, and the one metric is
    ``written``: of how many items.
    """
    if s["task"] == "captions":
        lengths = {"num_beams": s["beams"], "max_length": 20, "min_length": 8}

        def write(prompts: list[str], experts: dict[str, Any]) -> list[str]:
            return model.caption(experts, prompt=prompts[0], **lengths)

        written, truth = _each(s, model, items, write), items.data["captions"][:]
        if not all(truth):
            said = [text or "." for text in written]  # the server takes no empty one
            return _hand_in(nocaps.write_captions, file, items.data, said)
        found = wording(written, truth)
        domains = items.data["domain"][:] if "domain" in items.data.column_names else []
        for domain in sorted(set(domains) - {""}):
            rows = [i for i, each in enumerate(domains) if each == domain]
            part = wording([written[i] for i in rows], [truth[i] for i in rows])
            found += [(f"{domain.partition('-')[0]}-{name}", value) for name, value in part]
        return found
    names = s["task"] == "names"
    candidates = items.names if names else vqav2.answer_list(root)
    ids = prismer_text.answer_ids(model.tokenizer, candidates)

    def choose(prompts: list[str], experts: dict[str, Any]) -> list[str]:
        latents = model.encode(experts)  # (B, L, D)
        prompt, mask = prismer_text.prompt_ids(model.tokenizer, prompts)
        prompt, mask = prompt.to(latents.device), mask.to(latents.device)  # (B, N) each
        found = model.rank(latents, prompt, ids, s["shortlist"], attention_mask=mask)  # (B, K)
        return [candidates[int(best)] for best in found.argmax(1)]

    chosen = _each(s, model, items, choose)
    if names:
        right = [name == items.names[k] for name, k in zip(chosen, items.data["label"][:])]
        return [("accuracy", sum(right) / len(right))]
    truth = items.data["answers"][:]
    if not all(truth):
        return _hand_in(vqav2.write_answers, file, items.data, chosen)
    return [("accuracy", float(vqa_metrics.accuracy(chosen, truth).mean()))]


def wording(written: list[str], truth: list[list[str]]) -> list[tuple[str, float]]:
    """Metrics of captions as one corpus. So a domain's CIDEr-D counts rarity in that domain (chosen)."""
    return [
        ("cider", caption_metrics.cider(written, truth).corpus),
        ("bleu4", caption_metrics.bleu(written, truth)[3].corpus),
        ("rouge", caption_metrics.rouge_l(written, truth).corpus),
    ]


def _hand_in(write: Callable, file: Path, data: Any, texts: list[str]) -> list[tuple[str, float]]:
    """Write a file for a server and say where it is."""

    def work() -> None:
        print(f"{len(texts)} texts for the server: {write(file, data, texts)}")

    alone(work)
    return [("written", len(texts))]


def alone(work: Callable[[], None]) -> None:
    """Do something in the first of several processes, while the others wait."""
    accelerator = processes()
    if accelerator.is_main_process:
        work()
    accelerator.wait_for_everyone()


@torch.no_grad()
def same_buffers(model: Prismer) -> None:
    """Give all processes the buffers of the first: in training, each has its own BatchNorm statistics."""
    from accelerate.utils import broadcast

    if processes().num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


@torch.no_grad()
def _each(s: Settings, model: Prismer, items: PaperItems, say: Callable) -> list[str]:
    """``say(prompts, experts)`` of all items, shared out over the processes."""
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    accelerator, device = processes(), model.encoder.positions.device
    mine = list(range(len(items)))[accelerator.process_index :: accelerator.num_processes]
    parts = [mine[i : i + s["at_test"]] for i in range(0, len(mine), s["at_test"])]
    loader = DataLoader(
        items, batch_sampler=parts, num_workers=s["train"]["workers"], collate_fn=items.seen
    )
    found: list[tuple[int, str]] = []
    half = torch.autocast(device.type, torch.bfloat16, enabled=s["train"]["precision"] == "bf16")
    quiet = not accelerator.is_main_process or len(parts) < 2
    with half:
        for part, (prompts, experts) in zip(parts, tqdm(loader, "test", disable=quiet)):
            found += zip(part, say(prompts, tensors.to(experts, device)))
    if accelerator.num_processes > 1:
        found = gather_object(found)
    return [text for _, text in sorted(found)]


def processes() -> Any:
    """accelerate's view of the processes, as ``train.fit`` has it."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision="no")
