"""How Prismer's stages at paper scale are tested: captions are written, answers and names are ranked.

The rows of a test are shared out over the processes of ``accelerate launch``; each then has all texts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from .. import caption_metrics, prismer_text, vqa_metrics
from ..data import vqav2
from ..experts import tensors
from ..prismer import Prismer
from ..runs import Settings
from .prismer_paper_data import PaperItems

UNITS = {"cider": "CIDEr-D", "bleu4": "BLEU-4", "rouge": "ROUGE-L", "accuracy": "accuracy"}


def score(s: Settings, model: Prismer, items: PaperItems, root: Path) -> list[tuple[str, float]]:
    """Metrics of all items, by name."""
    if s["task"] == "captions":
        lengths = {"num_beams": s["beams"], "max_length": 20, "min_length": 8}

        def write(prompts: list[str], experts: dict[str, Any]) -> list[str]:
            return model.caption(experts, prompt=prompts[0], **lengths)

        written, truth = _each(s, model, items, write), items.data["captions"][:]
        return [
            ("cider", caption_metrics.cider(written, truth).corpus),
            ("bleu4", caption_metrics.bleu(written, truth)[3].corpus),
            ("rouge", caption_metrics.rouge_l(written, truth).corpus),
        ]
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
    return [("accuracy", float(vqa_metrics.accuracy(chosen, items.data["answers"][:]).mean()))]


def alone(work: Callable[[], None]) -> None:
    """Do something in the first of several processes, while the others wait."""
    accelerator = processes()
    if accelerator.is_main_process:
        work()
    accelerator.wait_for_everyone()


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
