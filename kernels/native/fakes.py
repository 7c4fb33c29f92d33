"""Shapes and dtypes of the C++ operations, for torch.compile and torch.export."""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Give every operation its fake implementation; once, after they were loaded."""
    torch.library.register_fake("aapa::segment_sentences", _segment_sentences)
    torch.library.register_fake("aapa::head_statistics", _head_statistics)
    torch.library.register_fake("aapa::head_gradient_", _head_gradient)
    torch.library.register_fake("aapa::sentence_means", _sentence_means)


def _segment_sentences(
    token: Tensor, cu_seqlens: Tensor, classes: Tensor, next: Tensor, cut: Tensor, mark: Tensor
) -> Tensor:
    offsets = torch.library.get_ctx().new_dynamic_size(min=1)
    return token.new_empty(offsets, dtype=torch.int32)


def _head_statistics(logits: Tensor, column: Tensor, scale: Tensor | None) -> Tensor:
    return logits.new_empty(4, logits.shape[0])


def _head_gradient(
    logits: Tensor,
    column: Tensor,
    scale: Tensor | None,
    lse: Tensor,
    logprob_grad: Tensor,
    entropy: Tensor,
    entropy_grad: Tensor | None,
) -> None:
    return None


def _sentence_means(hidden: Tensor, cu_sents: Tensor) -> Tensor:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.new_empty(cu_sents.shape[0] - 1, hidden.shape[1], dtype=dtype)
