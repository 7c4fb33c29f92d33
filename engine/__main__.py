"""`python -m aapa.engine` and `torchrun -m aapa.engine`: the same program as the console script `aapa`."""

from __future__ import annotations

import sys
from pathlib import Path

# `-m` puts the current directory first on the path. At the root of a checkout that would make its folders
# top-level modules, and `kernels` would hide Hugging Face's package of that name from transformers; last, it
# hides nothing.
_ROOT = str(Path(__file__).resolve().parent.parent)
if sys.path[:1] == [_ROOT]:
    sys.path.append(sys.path.pop(0))

if __name__ == "__main__":
    from aapa.engine.cli import entry

    entry()
