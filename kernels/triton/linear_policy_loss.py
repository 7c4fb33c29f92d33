"""`linear_policy_loss`: products by the vendor's library, the rest by `TritonGlue`."""

from functools import partial

from aapa.kernels.chunked.policy import linear_policy_loss as chunked
from aapa.kernels.triton.glue import GLUE

linear_policy_loss = partial(chunked, GLUE)
