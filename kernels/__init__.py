"""Fused operations for anchored policy optimisation, with plain-tensor interfaces.

Every operation lives in a file of its own name, has a torch reference in `reference/`, and is chosen
through `dispatch`. Nothing here knows the method's objects or the training system.
"""

# Functions share their file's name. Importing them here, once, lets the function replace the submodule that the
# import machinery puts under that name.
from aapa.kernels.anchor_advantages import anchor_advantages
from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.linear_logprob import linear_logprob
from aapa.kernels.linear_policy_loss import linear_policy_loss
from aapa.kernels.policy_loss import policy_loss
from aapa.kernels.reference_head import reference_head
from aapa.kernels.segment_sentences import segment_sentences
from aapa.kernels.sentence_scores import sentence_scores
from aapa.kernels.sentence_types import SentenceHead, SentenceTable

__all__ = [
    "SentenceHead",
    "SentenceTable",
    "TokenFields",
    "TokenLossSpec",
    "anchor_advantages",
    "linear_logprob",
    "linear_policy_loss",
    "policy_loss",
    "reference_head",
    "segment_sentences",
    "sentence_scores",
]
