"""PromptFuse and BlindPrompt: a frozen text encoder reads the picture as one more word, and twenty
trained vectors beside it (Liang, Zhao and Schuetze, Findings of ACL 2022).

    [CLS] text [SEP]  v  p_1 .. p_20          v = readout of the frozen image encoder

Only the prompts p and the head train: 20 * 768 = 15,360 numbers and the head for BERT-base. Saved
activations are those of the whole text encoder all the same: the gradient travels from its top to
its input. BlindPrompt adds a mask: prompts read prompts only, everything else reads everything.
The authors train with Adam and a learning rate of 0.5. Their code also trains the LayerNorms of v
and of the prompts, which their paper does not count; here only the prompts train.

Chosen here, as a text encoder with other habits than BERT's may be given:

- v and the prompts stand behind the text. The authors found their place immaterial. So CLS stays
  first and the readout looks at the text alone.
- They pass segment 0 and the input norm, as words do, and have no position: then neither the length
  of the padding nor that of the position table matters.
- Where the readout is not as wide as a word, one trained linear map stands before v.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import Block, attention_weights
from ..encoders import ImageEncoder, TextEncoder
from ..fusion import Tokens, appended
from ..pmf import PMFOutput, _check_batch
from .common import Baseline, last_tokens, one_answer

PROMPTS = 20  # M, as PMF and the authors set it


class PromptFuse(Baseline):
    """The prompts and the head train; both encoders are frozen.

    The prompts start as rows of the word table, drawn at random, as the authors'.

    Args:
        image_encoder, text_encoder: of any widths and depths.
        num_classes: C.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, num_classes: int
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder.requires_grad_(False)
        self.text_encoder = text_encoder.requires_grad_(False)
        table = text_encoder.words.weight  # (V, D_t)
        rows = torch.randint(len(table), (PROMPTS,), device=table.device)
        self.prompts = nn.Parameter(table.detach()[rows])  # (M, D_t)
        seen, width = image_encoder.config.readout_width, text_encoder.config.width
        self.project = nn.Identity() if seen == width else nn.Linear(seen, width)
        self.head = nn.Linear(text_encoder.config.readout_width, num_classes)
        self.train()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PMFOutput:
        """Pixels (B, 3, H, W), ids (B, N_t), mask (B, N_t) with 1 = keep -> logits (B, C).

        Raises:
            InputError: batch sizes differ, a text is all padding, or as the encoders' ``embed``.
        """
        _check_batch(pixel_values, input_ids, attention_mask)
        tokens = self.tokens(pixel_values, input_ids, attention_mask)  # (B, N_t + 1 + M, D_t)
        tokens = tokens[:, : input_ids.shape[1]]  # (B, N_t, D_t)
        summary = self.text_encoder.readout(tokens, attention_mask)  # (B, R_t)
        return one_answer(self.head(summary))

    def tokens(self, pixel_values: Tensor, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """What leaves the last block at text, v and prompts: (B, N_t + 1 + M, D_t)."""
        text = self.text_encoder
        with torch.no_grad():
            seen = self.image_encoder.readout(last_tokens(self.image_encoder, pixel_values))
        word = self.project(seen)[:, None]  # (B, R_i) -> (B, 1, D_t)
        first = text.types.weight[0]  # (D_t,)
        words = Tokens(text.embed(input_ids), mask)  # (B, N_t, D_t)
        joined = appended(
            words, text.input_norm(word + first), text.input_norm(self.prompts + first)
        )
        return self.run_layers(joined)

    def run_layers(self, joined: Tokens) -> Tensor:
        """All blocks of the text encoder: (B, N, D_t) -> (B, N, D_t)."""
        tokens = joined.values
        for layer in self.text_encoder.layers:
            tokens = layer(tokens, joined.mask)
        return tokens


class BlindPrompt(PromptFuse):
    """PromptFuse whose prompts cannot see the text or the picture; both see the prompts."""

    def run_layers(self, joined: Tokens) -> Tensor:
        """All blocks under the mask of ``blind``: (B, N, D_t) -> (B, N, D_t)."""
        tokens, keep = joined.values, blind(joined, PROMPTS)
        for layer in self.text_encoder.layers:
            tokens = run_block(layer, tokens, keep)
        return tokens


def blind(joined: Tokens, prompts: int) -> Tensor:
    """Who may read whom: (B, 1, N, N) boolean, row = reader, True = visible.

    The last ``prompts`` rows see themselves only; the others see all that is not padding.
    """
    batch, count, _ = joined.values.shape
    is_prompt = torch.arange(count, device=joined.values.device) >= count - prompts  # (N,)
    keep = ~is_prompt[:, None] | is_prompt  # (N, N)
    keep = keep.expand(batch, 1, -1, -1)  # (N, N) -> (B, 1, N, N)
    return keep if joined.mask is None else keep & joined.mask[:, None, None, :].bool()


def run_block(block: Block, tokens: Tensor, keep: Tensor) -> Tensor:
    """``block.forward`` under a mask of its own for each row.

    Args:
        block: a block of this library.
        tokens: (B, N, D).
        keep: boolean, broadcast to (B, H, N, N), row = reader, True = visible. Each row sees
            something.

    Returns:
        (B, N, D).
    """
    attention = block.attention
    normed = block.norm1(tokens) if block.pre_norm else tokens
    query = attention.split(attention.query(normed))  # (B, H, N, D / H)
    key, value = attention.split(attention.key(normed)), attention.split(attention.value(normed))
    if attention.fused:
        dropout = attention.dropout.p if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, keep, dropout)
    else:
        mixed = attention.dropout(attention_weights(query, key, keep)) @ value
    mixed = mixed.transpose(1, 2).flatten(2)  # (B, H, N, D / H) -> (B, N, D)
    tokens = tokens + block.scale1(attention.dropout(attention.out(mixed)))
    if block.pre_norm:
        return tokens + block.scale2(block.mlp(block.norm2(tokens)))
    tokens = block.norm1(tokens)
    return block.norm2(tokens + block.scale2(block.mlp(tokens)))
