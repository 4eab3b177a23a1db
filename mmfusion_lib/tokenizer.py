"""Text to ids: a thin wrapper over the `tokenizers` library that pads and cuts as encoders expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError
from .files import sha256


class Tokenizer:
    """The word-piece (BERT, MiniLM) or byte-pair (RoBERTa) rules of one encoder.

    Args:
        file: a ``tokenizer.json``.
        pad_id: id of the padding token.
        max_length: longest text the encoder takes, in tokens.

    Raises:
        InputError: the file cannot be read, or its vocabulary has no ``pad_id``.
    """

    def __init__(self, file: Path, pad_id: int, max_length: int):
        import tokenizers

        try:
            self._rules = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare exceptions
            raise InputError(f"{file} is not a tokenizer ({error}): fetch it again.") from error
        pad_token = self._rules.id_to_token(pad_id)
        if pad_token is None:
            raise InputError(f"{file} has no token {pad_id} for padding: it is another tokenizer.")
        self._rules.enable_padding(pad_id=pad_id, pad_token=pad_token, length=None)
        self.pad_id = pad_id
        self.max_length = max_length
        self.vocab_size = self._rules.get_vocab_size()
        self.digest = sha256(file)[:16]  # names the rules in cache keys

    def __call__(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask, padded to the longest text of the batch.

        Args:
            texts: B strings.
            max_length: longer texts are cut here, special tokens included; None: the encoder's limit.

        Returns:
            input_ids (B, N) int64 and attention_mask (B, N) int64, 1 = a token, 0 = padding.

        Raises:
            InputError: not a list of strings, an empty list, or a ``max_length`` out of range.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        longest = self.max_length if max_length is None else max_length
        if not texts:
            raise InputError("There is no text to tokenize: give at least one string.")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(
                    f"Text {row} is {type(text).__name__}, not a string: fill it in or drop the row."
                )
        if not 3 <= longest <= self.max_length:  # two special tokens and one of the text
            raise InputError(
                f"max_length is {longest}: choose a value from 3 to {self.max_length} tokens."
            )
        self._rules.enable_truncation(longest)
        encoded = self._rules.encode_batch(texts)
        ids = torch.tensor([item.ids for item in encoded], dtype=torch.int64)
        mask = torch.tensor([item.attention_mask for item in encoded], dtype=torch.int64)
        return ids, mask

    def decode(self, ids: Sequence[int] | Tensor, special: bool = False) -> str:
        """Ids of one text -> the text; ``special`` keeps [CLS], [SEP] and padding."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self._rules.decode(ids, skip_special_tokens=not special)

    def tokens(self, ids: Sequence[int] | Tensor) -> list[str]:
        """The piece of text behind each id, for labels on a figure."""
        return [self._rules.id_to_token(int(value)) for value in ids]
