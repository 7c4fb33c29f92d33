"""Native `segment_sentences`: the transducer in C++, threads over sequences; in CUDA C++ for tokens on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.native import cuda
from aapa.kernels.sentence_types import SentenceTable


def segment_sentences(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable) -> Tensor:
    if token_T.is_cuda:
        return cuda.segment_sentences(token_T, cu_seqlens, table)
    found: Tensor = torch.ops.aapa.segment_sentences(
        token_T, cu_seqlens.cpu(), table.class_V, table.next_CQ, table.cut_CQ, table.mark_CQ
    )
    return found
