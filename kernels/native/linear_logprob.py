"""Native `linear_logprob`: the chunk loop with the C++ glue."""

from functools import partial

from aapa.kernels.chunked.logprob import linear_logprob as chunked
from aapa.kernels.native.glue import NativeGlue

linear_logprob = partial(chunked, NativeGlue())
