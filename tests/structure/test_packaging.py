"""The folders are the package, whether installed editable, as a wheel, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aapa

ROOT = Path(__file__).resolve().parents[2]
# Prints where both packages come from; found, not imported, for the kernels need torch and -S has none.
LOCATE = "import importlib.util as u; print(*(u.find_spec(f'aapa.{n}').origin for n in ('engine.cli', 'kernels')))"
FILES = ("engine/cli.py", "kernels/__init__.py")


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(list(words), cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def copy_sources(target: Path) -> None:
    for name in ("aapa", "engine", "kernels", "csrc"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_module_run(where: str, tmp_path: Path) -> None:
    cwd = ROOT if where == "root" else tmp_path
    result = run(sys.executable, "-m", "aapa.engine", "--version", cwd=cwd)
    assert (result.returncode, result.stdout) == (0, f"aapa {aapa.__version__}\n"), result.stderr


@pytest.mark.multiprocess
def test_torchrun_module_from_the_root() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run(*torchrun, "-m", "aapa.engine", "--version", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"aapa {aapa.__version__}") == 2


def test_a_bare_checkout_runs_from_its_root(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    # -S: no site-packages, so that nothing installed can help.
    result = run(sys.executable, "-S", "-c", LOCATE, cwd=tmp_path)
    assert result.stdout.split() == [str(tmp_path / name) for name in FILES], result.stderr
    result = run(sys.executable, "-S", "-m", "aapa.engine", "--version", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_checkout_is_not_mixed_with_an_installed_version(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    result = run(sys.executable, "-c", LOCATE, cwd=tmp_path)
    assert result.stdout.split() == [str(tmp_path / name) for name in FILES], result.stderr


def test_the_checkout_hides_no_installed_package(tmp_path: Path) -> None:
    """Hugging Face has a package `kernels`; from the root of a checkout ours must not stand in for it."""
    (tmp_path / "kernels").mkdir()
    source = "def reward(completions, **columns): return [0.0] * len(completions)\n"
    (tmp_path / "kernels" / "__init__.py").write_text(source)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\n[[stages]]\nname = "rl"\nsteps = 1\nlearning_rate = 1e-4\n'
        'rewards = [{ function = "kernels:reward" }]\nobjective = { kind = "grpo" }\n'
    )
    words = (sys.executable, "-m", "aapa.engine", "train", str(recipe), "--check")
    result = run(*words, cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_extension_that_does_not_build_is_left_out_and_said(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    shutil.rmtree(tmp_path / "csrc", ignore_errors=True)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "broken.cpp").write_text("#error broken on purpose\n")
    (tmp_path / "kernels" / "_C.stale.so").touch()
    build = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    assert "aapa setup: C++ operations NOT built" in build.stderr
    assert list((tmp_path / "kernels").glob("_C*")) == []


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "installed"
    source.mkdir()
    copy_sources(source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source), cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    (wheel,) = wheels.glob("aapa-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"aapa/py.typed"}
    for folder, package in (("aapa", "aapa"), ("engine", "aapa/engine"), ("kernels", "aapa/kernels")):
        files = [*(source / folder).rglob("*.py"), *(source / folder).rglob("*.toml")]
        expected |= {f"{package}/{file.relative_to(source / folder).as_posix()}" for file in files}
    assert expected - names == set()
    assert {name for name in names if not name.startswith("aapa")} == set()

    install = run(*pip, "install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    assert install.returncode == 0, install.stderr
    # From the root the checkout's folders come first, elsewhere the wheel's; neither is a mixture.
    for cwd, home in ((tmp_path, target / "aapa"), (source, source)):
        result = run(sys.executable, "-S", "-c", LOCATE, cwd=cwd, PYTHONPATH=str(target))
        assert result.stdout.split() == [str(home / name) for name in FILES], result.stderr
