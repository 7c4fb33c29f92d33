"""Sentence boundaries from token ids, without decoding them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.checks import check_integers, check_offsets
from aapa.kernels.dispatch import run

if TYPE_CHECKING:
    from torch import Tensor

    from aapa.kernels.sentence_types import SentenceTable


def segment_sentences(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable, *, backend: str = "auto") -> Tensor:
    """Cuts packed sequences into sentences (METHOD §1): contiguous spans that cover every token once.

    Args:
        token_T: [T] integer token ids of N sequences laid end to end.
        cu_seqlens: [N + 1] integer offsets from 0 to T. Each is a boundary; an empty sequence has no sentence. On a GPU
            the host waits for them, and for the ids.
        table: transducer over the ids of this vocabulary.
        backend: "auto" | "native" | "reference".

    Returns:
        cu_sents: [S + 1] int32, strictly increasing from 0 to T, on the device of `token_T`; [0] if T = 0.

    Raises:
        ValueError: offsets that do not run from 0 to T, a token id outside the table, or a table that leads outside of
            itself.
    """
    import torch

    check_integers("token_T", token_T)
    if token_T.dim() != 1:
        raise ValueError(f"token_T: expected one dimension [T], got shape {tuple(token_T.shape)}")
    tokens = token_T.shape[0]
    check_offsets("cu_seqlens", cu_seqlens, tokens, wait=True)
    if token_T.dtype not in (torch.int32, torch.int64):
        token_T = token_T.long()
    cu_sents: Tensor = run("segment_sentences", backend, token_T.device, token_T, cu_seqlens, table)
    return cu_sents
