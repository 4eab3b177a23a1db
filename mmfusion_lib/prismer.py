"""Prismer: a picture and the maps of experts in, text out (Liu et al., TMLR 2024).

A frozen image encoder with adaptors reads the picture and 64 latents of the experts. A frozen text encoder,
made causal, writes, and looks at all of that in every layer. Shapes: B batch, L vision tokens,
N text tokens, D width of the image encoder, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from . import generate as generation
from . import prismer_text, rank
from .decoder import Decoder, loss
from .encoders import ImageEncoder, TextEncoder, build_encoder
from .errors import InputError
from .expert_checks import check_experts
from .prismer_config import ENCODERS, PrismerConfig, named_prismer
from .prismer_encoder import PrismerEncoder
from .prismer_input import read
from .trainable import freeze, trainable_table

if TYPE_CHECKING:
    from .data.images import ImageTransform
    from .experts import Expert, LabelTable
    from .tokenizer import Tokenizer

ROBERTA_END = 2  # id of </s>
FREEZE_MODES = ("lang_vision", "vision", "lang", "none")


class PrismerOutput(NamedTuple):
    """What the decoder says of a batch of texts."""

    logits: Tensor  # (B, N, V)
    loss: Tensor | None  # (B,), summed over the tokens of each text


class Prismer(nn.Module):
    """Encoder with experts, decoder, and the calls that use both.

    Args:
        image_encoder, text_encoder: pretrained or random; their modules are taken over, not copied.
        config: its ``image`` and ``text`` must be the configurations of the two.

    Attributes:
        tokenizer, transform: set by ``load_prismer`` and ``from_official``; ``caption`` and ``answer``
            need them, the rest does not.
        suppliers: experts that are run on a picture which comes without maps.
        label_table: turns the names that suppliers find into vectors; None: fitted when needed.

    Raises:
        InputError: an encoder is not that of ``config``.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, config: PrismerConfig
    ):
        super().__init__()
        for name, encoder in (("image", image_encoder), ("text", text_encoder)):
            if encoder.config != getattr(config, name):
                raise InputError(
                    f"config.{name} is not the configuration of the {name} encoder: pass "
                    f"PrismerConfig({name}={name}_encoder.config, ...)."
                )
        self.config = config
        self.encoder = PrismerEncoder(image_encoder, config)
        adaptor = {
            "bottleneck": config.adaptor_bottleneck,
            "gate": config.adaptor_gate,
            "near_zero": config.adaptor_near_zero,
        }
        self.decoder = Decoder(text_encoder, config.image.width, adaptor=adaptor)
        self.tokenizer: Tokenizer | None = None
        self.transform: ImageTransform | None = None
        self.suppliers: Sequence[Expert] = ()
        self.label_table: LabelTable | None = None

    def encode(self, experts: Mapping[str, Any], instance_rows: Any = None) -> Tensor:
        """Picture and label maps -> (B, L, D); see ``PrismerEncoder.forward``.

        Raises:
            InputError: what ``check_experts`` and ``PrismerEncoder.forward`` refuse.
        """
        check_experts(experts, self.config.stems)
        return self.encoder(experts, instance_rows)

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        latents: Tensor,
        labels: Tensor | None = None,
    ) -> PrismerOutput:
        """Logits of every next token, and the loss of each text (official code).

        Args:
            input_ids: (B, N).
            attention_mask: (B, N), 1 = a token; None: no padding.
            latents: (B, L, D) of ``encode``.
            labels: (B, N), what each *position* holds (usually ``input_ids``), -100 where nothing is to
                be learnt: the prompt and padding. The token at n is predicted from those before.
        """
        logits = self.decoder(input_ids, latents, attention_mask)
        if labels is None:
            return PrismerOutput(logits, None)
        return PrismerOutput(logits, loss(logits, labels, self.config.label_smoothing))

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor,
        prompt_ids: Tensor,
        num_beams: int = 3,
        max_length: generation.OneOrEach = 20,
        min_length: generation.OneOrEach = 8,
        **options: Any,
    ) -> Tensor:
        """Go on from prompts: ids (B, N), prompt included; see ``generate.generate``.

        Args:
            latents: (B, L, D) of ``encode``.
            prompt_ids: (B, N_p), packed to the left.
            num_beams, max_length, min_length: as published; lengths count the prompt.
            options: further ones of ``generate.generate``, such as ``attention_mask``.
        """
        return generation.generate(
            self.decoder,
            latents,
            prompt_ids,
            num_beams=num_beams,
            max_length=max_length,
            min_length=min_length,
            **{**self._ends(), **options},
        )

    @torch.no_grad()
    def rank(
        self,
        latents: Tensor,
        prompt_ids: Tensor,
        candidate_ids: Sequence[Sequence[int]],
        shortlist: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Score given endings of a prompt: (B, K), the highest is the best; see ``rank.rank``.

        The smoothing is that of the training loss, unless ``options`` say otherwise.
        """
        options.setdefault("smoothing", self.config.label_smoothing)
        return rank.rank(
            self.decoder, latents, prompt_ids, candidate_ids, shortlist=shortlist, **options
        )

    @torch.no_grad()
    def caption(
        self,
        source: Any,
        *,
        prompt: str = prismer_text.CAPTION_PROMPT,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 8,
    ) -> str | list[str]:
        """A caption of a picture, or of each of a list; the model is then in evaluation mode.

        Args:
            source: a path, PIL image or tensor (3, H, W), normalised; or a batch of ``experts`` as
                ``encode`` takes it; or a list of the first three kinds.
            prompt: beginning that is put into its mouth and left out of what is returned.
            num_beams, max_length, min_length: see ``generate``; lengths count the prompt.

        Raises:
            InputError: no tokenizer is attached, or a picture cannot be read.
        """
        experts, single = self.read(source)
        latents = self.eval().encode(experts)
        ids, mask = prismer_text.prompt_ids(self._tokenizer(), [prompt] * len(latents))
        ids, mask = ids.to(latents.device), mask.to(latents.device)
        lengths = {"num_beams": num_beams, "max_length": max_length, "min_length": min_length}
        written = self.generate(latents, ids, attention_mask=mask, **lengths)
        texts = [
            prismer_text.sentence(self._tokenizer().decode(row), self._spoken(prompt))
            for row in written
        ]
        return texts[0] if single else texts

    @torch.no_grad()
    def answer(
        self,
        source: Any,
        question: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        shortlist: int | None = None,
        max_length: int = 10,
    ) -> str | list[str]:
        """The answer to a question about a picture, or to each of a list; as ``caption``.

        Args:
            source: as for ``caption``.
            question: one for all pictures, or one for each.
            candidates: the answers to choose from; None: it is written freely.
            shortlist: of the candidates, see ``rank.rank``; None: all.
            max_length: tokens that a free answer may have, its end mark included.

        Raises:
            InputError: an empty question, as many questions as pictures are needed, or as ``caption``.
        """
        experts, single = self.read(source)
        latents = self.eval().encode(experts)
        several = isinstance(question, list | tuple)
        questions = list(question) if several else [question] * len(latents)
        if not all(isinstance(text, str) for text in questions):
            raise InputError(f"question={question!r} must be a text, or a list of texts.")
        if len(questions) != len(latents):
            raise InputError(
                f"There are {len(questions)} questions for {len(latents)} pictures: ask one of all, "
                "or one of each."
            )
        tokenizer = self._tokenizer()
        asked = [prismer_text.clean_question(text) for text in questions]
        ids, mask = prismer_text.prompt_ids(tokenizer, asked)
        ids, mask = ids.to(latents.device), mask.to(latents.device)
        if candidates is not None:
            choices = prismer_text.answer_ids(tokenizer, candidates)
            scores = self.rank(latents, ids, choices, shortlist, attention_mask=mask)  # (B, K)
            found = [candidates[int(best)] for best in scores.argmax(1)]
        else:
            lengths = mask.sum(1).tolist()  # of the questions
            written = self.generate(
                latents, ids, attention_mask=mask, length_penalty=-1.0,
                max_length=[n + max_length for n in lengths],
                min_length=[n + 2 for n in lengths],
            )  # fmt: skip
            found = [tokenizer.decode(row[ids.shape[1] :]).strip() for row in written]
        return found[0] if single else found

    def read(self, source: Any) -> tuple[dict[str, Any], bool]:
        """What ``caption`` takes -> a batch for ``encode``, and whether it was one picture."""
        return read(self, source)

    def freeze(self, mode: str = "lang_vision") -> str:
        """Choose what trains, as the official code does, and return a table of it.

        Args:
            mode: "lang_vision" freezes the pretrained blocks of both sides (pre-training); "vision"
                those of the image side (fine-tuning); "lang" those of the text side; "none" nothing.
                Patch projection, positions, word table and outer norms train in any mode.

        Raises:
            InputError: unknown mode.
        """
        if mode not in FREEZE_MODES:
            raise InputError(f"mode={mode!r} is unknown: use one of {', '.join(FREEZE_MODES)}.")
        self.requires_grad_(True)
        if "vision" in mode:
            for layer in self.encoder.layers:
                freeze(layer.block)
        if "lang" in mode:
            for layer in self.decoder.layers:
                freeze(layer.block)
        return trainable_table(self)

    @classmethod
    def from_official(cls, folder_or_file: str | Path, name: str) -> Prismer:
        """A published checkpoint, read with the safe loader; see ``official_prismer.from_official``."""
        from . import official_prismer

        return official_prismer.from_official(folder_or_file, name)

    def _ends(self) -> dict[str, int]:
        end = {"pad_id": self.config.text.pad_id}
        if self.tokenizer is not None:
            end["eos_id"] = prismer_text.end_id(self.tokenizer)
        elif self.config.text.position_offset:
            end["eos_id"] = ROBERTA_END
        return end

    def _spoken(self, prompt: str) -> str:
        """The prompt as the tokenizer gives it back (MiniLM's lower-cases)."""
        tokenizer = self._tokenizer()
        return tokenizer.decode(tokenizer([prompt])[0][0]).strip() if prompt else ""

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                "This model has no tokenizer: set model.tokenizer (checkpoints.load_tokenizer gives "
                "one)."
            )
        return self.tokenizer


def build_prismer(config: str | PrismerConfig, **changes: Any) -> Prismer:
    """A Prismer with random weights, in training mode, from a name or a configuration.

    Inside ``with torch.device("meta"):`` it takes no memory, which is how large ones are counted.
    """
    config = named_prismer(config, **changes) if isinstance(config, str) else config
    return Prismer(build_encoder(config.image), build_encoder(config.text), config)


def load_prismer(name: str = "small", *, seed: int = 0, **changes: Any) -> Prismer:
    """Pretrained encoders, all that is new drawn from ``seed``; blocks frozen as in pre-training.

    Args:
        name: a name of ``prismer_config.MODELS``.
        seed: of stems, resampler, adaptors, cross-attention and the extra layer.
        changes: fields of ``PrismerConfig``; ``experts=()`` is PrismerZ.

    Raises:
        InputError: unknown name, or weights that cannot be had.
    """
    from . import checkpoints

    config = named_prismer(name, **changes)
    image_name, text_name = ENCODERS[name]
    image = checkpoints.load_image_encoder(image_name, depth=config.image.depth)
    text = checkpoints.load_text_encoder(text_name, depth=config.text.depth)
    torch.manual_seed(seed)
    model = Prismer(image, text, config)
    model.tokenizer = checkpoints.load_tokenizer(text_name)
    model.transform = checkpoints.image_transform(image_name, size=config.image_size)
    model.freeze("lang_vision")
    return model
