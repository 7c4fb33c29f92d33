"""Reference of `segment_sentences`: the transducer, run token by token over plain lists.

Shape legend: T tokens, N sequences, S sentences, C classes, Q states.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from aapa.kernels.sentence_types import SentenceTable

CUT, MARK = 1, 2


def segment_sentences(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable) -> Tensor:
    vocabulary = table.class_V.shape[0]
    if len(token_T) and not 0 <= int(token_T.min()) <= int(token_T.max()) < vocabulary:
        raise ValueError(f"token_T: expected ids in [0, {vocabulary}), got {int(token_T.min())} … {int(token_T.max())}")
    # Lists, not tensors: indexing a list costs 30 ns, indexing a tensor a microsecond. Only classes that occur are
    # converted: the table of a large vocabulary has thousands. A state is kept multiplied by four with the two flags
    # below it, so that one look-up answers everything about a token.
    rows = table.class_V.index_select(0, token_T.to(table.class_V.device, torch.int64)).tolist()
    used = list(set(rows))
    classes, states = table.next_CQ.shape
    if used and not 0 <= min(used) <= max(used) < classes:
        raise ValueError(f"class_V: expected rows of next_CQ, got {min(used)} … {max(used)}")
    if used and int(table.next_CQ[used].max()) >= states:
        raise ValueError(f"next_CQ: expected states below {states}, got {int(table.next_CQ[used].max())}")
    step_CQ = table.next_CQ[used].int() * 4 + table.cut_CQ[used].int() * CUT + table.mark_CQ[used].int() * MARK
    steps = dict(zip(used, step_CQ.tolist(), strict=True))
    bounds = cu_seqlens.tolist()
    starts = []
    for begin, end in pairwise(bounds):
        if begin == end:
            continue
        starts.append(begin)
        state = 0
        mark = last = begin
        for position in range(begin, end):
            step = steps[rows[position]][state]
            state = step >> 2
            if step & 3:
                if step & CUT and mark > last:
                    starts.append(mark)
                    last = mark
                if step & MARK:
                    mark = position + 1
    return torch.tensor([*starts, bounds[-1]], dtype=torch.int32, device=token_T.device)
