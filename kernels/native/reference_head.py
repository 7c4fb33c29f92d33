"""Native `reference_head`: log-probs by the chunk loop with the C++ glue, means in C++."""

from functools import partial

import torch

from aapa.kernels.reference.reference_head import head_of_parts

reference_head = partial(head_of_parts, "native", torch.ops.aapa.sentence_means)
