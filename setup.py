"""Maps folders to packages and builds the optional C++ extension; everything else is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

FOLDERS = {"aapa": "aapa", "aapa.engine": "engine", "aapa.kernels": "kernels"}
ROOT = Path(__file__).resolve().parent


def packages() -> list[str]:
    """Every package under each folder, named as it is imported."""
    names = []
    for package, folder in FOLDERS.items():
        names += [package, *(f"{package}.{name}" for name in find_packages(str(ROOT / folder)))]
    return names


def say(text: str) -> None:
    """Prints to stderr, where `pip install -v` and a failed install both show it."""
    print(f"aapa setup: {text}", file=sys.stderr, flush=True)


def extension() -> dict[str, Any]:
    """The C++ operations of csrc/ as `aapa.kernels._C`, or nothing where they cannot be built.

    The extension is optional: without it the operations run on their torch references and an
    explicitly chosen `backend="native"` raises. A build that is skipped or fails says why.
    """
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
    if not sources:
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        say(f"C++ operations NOT built, torch is missing from the build environment ({error});")
        say("install torch first and add --no-build-isolation")
        return {}

    class OptionalBuild(BuildExtension):  # type: ignore[misc]
        def run(self) -> None:
            # torch raises plain RuntimeError from ninja, which setuptools' own `optional` does not cover.
            try:
                super().run()
            except Exception as error:
                say(f"C++ operations NOT built: {type(error).__name__}: {error}")
                for stale in (ROOT / "kernels").glob("_C*.so"):
                    stale.unlink()  # built from other sources, it would be used as if nothing had happened

    headers = sorted(str(path.relative_to(ROOT)) for kind in ("*.h", "*.inc") for path in (ROOT / "csrc").glob(kind))
    # Units for newer processors switch their instructions on themselves: one set of flags runs everywhere.
    flags = ["-O3", "-std=c++20"]
    # at::parallel_for is a template: built without OpenMP it runs on one thread, and says nothing. The loader gives the
    # extension the libgomp that torch has loaded, so torch.set_num_threads holds for both.
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    module = CppExtension(
        "aapa.kernels._C",
        sources,
        depends=headers,
        extra_compile_args=[*flags, *threads],
        extra_link_args=threads,
        optional=True,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuild}}


setup(
    # The sources in csrc/ are installed, too: what needs nvcc is compiled where there is one.
    packages=[*packages(), "aapa.csrc"],
    package_dir={**FOLDERS, "aapa.csrc": "csrc"},
    package_data={"aapa": ["py.typed"], "aapa.engine": ["recipes/*.toml"], "aapa.csrc": ["*"]},
    **extension(),
)
