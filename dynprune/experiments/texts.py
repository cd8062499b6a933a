"""Words and their numbers: a vocabulary that is trained on the training split only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 10_000
PAD, UNKNOWN = "[PAD]", "[UNK]"  # numbers 0 and 1


def train_vocabulary(texts: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """The ``size`` most frequent words of ``texts``, in lower case, line breaks left out."""
    tokenizer = _untrained(models.WordLevel(unk_token=UNKNOWN))
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def words(tokenizer: Tokenizer) -> list[str]:
    """The words of a vocabulary in the order of their numbers."""
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=lambda word: numbers[word])


def from_words(words: Sequence[str]) -> Tokenizer:
    """The inverse of :func:`words`."""
    numbers = {word: number for number, word in enumerate(words)}
    return _untrained(models.WordLevel(numbers, unk_token=UNKNOWN))


def numbered(tokenizer: Tokenizer, texts: Sequence[str], steps: int | None) -> tuple[Tensor, Tensor]:
    """The numbers of all words int32 [sum of lengths], and where each text starts int64 [N + 1].

    Of a text with more than ``steps`` words the first quarter of ``steps`` and the last three quarters are
    kept: the end of a review says most. A text without words is one unknown word.
    """
    kept = []
    for text in tokenizer.encode_batch(texts):
        ids = text.ids or [1]
        if steps is not None and len(ids) > steps:
            ids = ids[: steps // 4] + ids[-(steps - steps // 4) :]
        kept.append(torch.tensor(ids, dtype=torch.int32))
    starts = torch.zeros(len(kept) + 1, dtype=torch.int64)
    starts[1:] = torch.tensor([len(ids) for ids in kept]).cumsum(0)
    return torch.cat(kept), starts


def _untrained(model: models.WordLevel) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("<br />", " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
