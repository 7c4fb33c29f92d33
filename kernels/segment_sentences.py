"""Sentence boundaries from token ids, without decoding them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.dispatch import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from aapa.kernels.sentence_types import SentenceTable


def segment_sentences(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable, *, backend: str = "auto") -> Tensor:
    """Cuts packed sequences into sentences (METHOD §1): contiguous spans that cover every token once.

    Args:
        token_T: [T] integer token ids of N sequences laid end to end.
        cu_seqlens: [N + 1] int32 offsets from 0 to T. Each is a boundary; an empty sequence has no sentence.
        table: transducer over the ids of this vocabulary.
        backend: "auto" | "native" | "reference".

    Returns:
        cu_sents: [S + 1] int32, strictly increasing from 0 to T, on the device of `token_T`; [0] if T = 0.

    Raises:
        ValueError: offsets that do not run from 0 to T, or a token id outside the table.
    """
    tokens = token_T.shape[0]
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != tokens or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(f"cu_seqlens: expected offsets from 0 to {tokens}, got {cu_seqlens.tolist()[:8]} …")
    if tokens and not 0 <= int(token_T.min()) <= int(token_T.max()) < table.class_V.shape[0]:
        span = f"{int(token_T.min())} … {int(token_T.max())}"
        raise ValueError(f"token_T: expected ids in [0, {table.class_V.shape[0]}), got {span}")
    return resolve("segment_sentences", backend, token_T.device).segment_sentences(token_T, cu_seqlens, table)
