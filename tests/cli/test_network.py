"""A machine without a network interface that gloo can use: exit 2, and what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aapa.engine import cli

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="gloo is for CPUs")


def _has_namespaces() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-n", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="needs the right to make a network namespace")
def test_no_loopback(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-m", "aapa.engine", "train", "smoke", "--output", str(tmp_path / "run")]
    done = subprocess.run(["unshare", "-n", *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "network: expected a loopback interface, which gloo needs, got none; 'ip link set lo up'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_such_interface(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
    assert cli.main(["train", "smoke", "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error == "aapa: GLOO_SOCKET_IFNAME: expected a network interface with an address, got 'nowhere'\n"
