"""Throughput of our encoders as a ratio of the reference libraries' own models.

    python tests/benchmarks/bench_encoders.py [--repeats 5] [--batch 8] [--threads 1] [--small]

Same machine, type, batch and sizes; the two models take turns and the fastest of the repeats
counts. On a CPU the clock is the processor time of this process, so that other work on the machine
does not count; on a GPU it is the wall. The exit status is 1 when a ratio is below 0.9, the
project's target.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from mmfusion_lib import settings
from mmfusion_lib.encoders import CONFIGS, build_encoder

TARGET = 0.9
TEXT_TOKENS = 64


def timm_vit() -> torch.nn.Module:
    import timm

    return timm.create_model("vit_base_patch16_224", num_classes=0)


def hf_dinov2() -> torch.nn.Module:
    import transformers

    return transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
        )
    )


def hf_bert() -> torch.nn.Module:
    import transformers

    return transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)


def hf_minilm() -> torch.nn.Module:
    import transformers

    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def open_clip_b16() -> torch.nn.Module:
    from open_clip.transformer import QuickGELU, VisionTransformer

    return VisionTransformer(224, 16, 768, 12, 12, 4.0, act_layer=QuickGELU)


CASES: dict[str, tuple[str, Callable[[], torch.nn.Module]]] = {
    "timm ViT-B/16": ("vit-base", timm_vit),
    "open_clip ViT-B/16": ("clip-b16", open_clip_b16),
    "transformers DINOv2-S/14": ("dinov2-small", hf_dinov2),
    "transformers BERT-base": ("bert-base", hf_bert),
    "transformers MiniLM-L6": ("minilm-l6", hf_minilm),
}
SMALL = ("transformers DINOv2-S/14", "transformers MiniLM-L6")


def inputs_for(name: str, batch: int, device: torch.device, dtype: torch.dtype) -> tuple:
    """Images of 224 x 224, or texts of which half have padding."""
    if CONFIGS[name].kind == "image":
        return (torch.randn(batch, 3, 224, 224, device=device, dtype=dtype),)
    ids = torch.randint(1000, 2000, (batch, TEXT_TOKENS), device=device)
    mask = torch.ones_like(ids)
    mask[::2, TEXT_TOKENS // 2 :] = 0
    return ids, mask


def seconds(model: torch.nn.Module, inputs: tuple, device: torch.device) -> float:
    """One forward pass."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    with torch.inference_mode():
        model(*inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def compare(case: str, batch: int, dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    """Fastest pass of ours and of the reference, in seconds."""
    device = settings.device()
    name, make_reference = CASES[case]
    ours = build_encoder(name).to(device, dtype).eval()
    reference = make_reference().to(device, dtype).eval()
    inputs = inputs_for(name, batch, device, dtype)
    best = [float("inf"), float("inf")]
    for repeat in range(repeats + 1):  # the first round warms up
        for index, model in enumerate((ours, reference)):
            taken = seconds(model, inputs, device)
            if repeat:
                best[index] = min(best[index], taken)
    return best[0], best[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the two default encoders only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{settings.device()}, batch {arguments.batch}, {arguments.threads} thread(s)")
    print(f"{'reference':<26}{'type':<10}{'ours /s':>9}{'theirs /s':>11}{'ratio':>8}")
    worst = float("inf")
    for case in SMALL if arguments.small else CASES:
        for dtype in (torch.float32, torch.bfloat16):
            ours, theirs = compare(case, arguments.batch, dtype, arguments.repeats)
            worst = min(worst, theirs / ours)
            print(
                f"{case:<26}{str(dtype).removeprefix('torch.'):<10}{arguments.batch / ours:>9.1f}"
                f"{arguments.batch / theirs:>11.1f}{theirs / ours:>8.2f}"
            )
    print(f"lowest ratio {worst:.2f}, target {TARGET}: {'OK' if worst >= TARGET else 'FAIL'}")
    return int(worst < TARGET)


if __name__ == "__main__":
    sys.exit(main())
