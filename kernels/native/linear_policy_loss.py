"""Native `linear_policy_loss`: the chunk loop with the C++ glue."""

from functools import partial

from aapa.kernels.chunked.policy import linear_policy_loss as chunked
from aapa.kernels.native.glue import NativeGlue

linear_policy_loss = partial(chunked, NativeGlue())
