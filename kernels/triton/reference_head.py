"""`reference_head`: log-probs by the head's kernels, means by `segment_means`, from one gathered tensor."""

from functools import partial

from aapa.kernels.reference.reference_head import head_of_parts
from aapa.kernels.triton.segment_mean import segment_means

reference_head = partial(head_of_parts, "triton", segment_means)
