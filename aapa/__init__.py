"""AAPA: post-training in which an objective is anchored to offline expert responses.

Exports are lazy so that `import aapa` loads no torch and the command line answers at once.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aapa.anchor import Anchor
    from aapa.batch import TokenBatch
    from aapa.objectives import CHORD, GRPO, SFT, Objective
    from aapa.schedules import Schedule

__version__ = "0.1.0"
__all__ = ["CHORD", "GRPO", "SFT", "Anchor", "Objective", "Schedule", "TokenBatch", "__version__"]

_EXPORTS = {
    "SFT": "aapa.objectives",
    "GRPO": "aapa.objectives",
    "CHORD": "aapa.objectives",
    "Objective": "aapa.objectives",
    "Anchor": "aapa.anchor",
    "Schedule": "aapa.schedules",
    "TokenBatch": "aapa.batch",
}


class _CheckoutFinder:
    """Resolves `aapa.engine` and `aapa.kernels` to the folders beside this one in a source checkout.

    Python puts the current directory first on its path, so at the repository root `import aapa` finds
    this folder whatever is installed, and this folder holds neither sub-package. An editable install
    brings a finder of its own; a bare checkout, or one beside an installed wheel, has none, and
    `torchrun -m aapa.engine` would fail there or mix two versions. Exactly two names are resolved:
    appending the root to `__path__` would also make `aapa.setup` and `aapa.aapa` importable.
    """

    folders: dict[str, str] = {"aapa.engine": "engine", "aapa.kernels": "kernels"}  # noqa: RUF012

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        folder = cls.folders.get(fullname)
        if folder is None:
            return None
        # PathFinder takes the last part of the name, which equals the folder's name.
        return PathFinder.find_spec(fullname, [str(Path(__file__).resolve().parent.parent)])


def _is_checkout() -> bool:
    here = Path(__file__).resolve().parent
    return not (here / "engine").is_dir() and (here.parent / "engine" / "__init__.py").is_file()


if _is_checkout() and _CheckoutFinder not in sys.meta_path:
    sys.meta_path.insert(0, _CheckoutFinder)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'aapa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
