"""The scripts in benchmarks/ refuse what they cannot do before they begin, and say which part failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aapa.kernels import TokenFields, TokenLossSpec, policy_loss
from benchmarks import run
from benchmarks.harness import Candidate, Case, Options, measure

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"
# Stands for an interpreter on a machine with a GPU: it notes what it is asked for, and fails for words in FAIL.
STUB = """#!/bin/bash
echo "$*" >> "$ASKED"
case "$*" in *is_available*json*) echo '{}' ;; *'"yes"'*) echo yes ;; esac
for word in $FAIL; do case "$*" in *"$word"*) exit 3 ;; esac; done
"""


def suite(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([SUITE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "bogus"], "--only: expected correctness, head or operations, got bogus"),
        (["--only"], "--only: expected a value"),
        (["--only", "--dry-run"], "--only: expected a value"),
        (["--download"], "--download: expected a value"),
        (["--fast"], "expected an option that exists, got --fast"),
        (["one", "--dry-run", "two"], "expected one OUTPUT"),
    ],
)
def test_the_suite_refuses_what_it_does_not_know(arguments, message):
    done = suite(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_suite_explains_itself():
    done = suite("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: benchmarks/gpu_suite.sh")


@pytest.fixture
def stub(tmp_path):
    """(environment with the stub, what it was asked for)."""
    file, asked = tmp_path / "python", tmp_path / "asked"
    file.write_text(STUB, encoding="utf-8")
    file.chmod(0o755)
    return {"PYTHON": str(file), "ASKED": str(asked), "FAIL": "", "NVCC": "nvcc", "TMPDIR": str(tmp_path)}, asked


def test_a_part_that_fails_stops_no_other_and_shows_in_the_exit_status(tmp_path, stub):
    environment, asked = stub
    done = suite("results", cwd=tmp_path, **environment | {"FAIL": "tests/triton bench_policy_loss"})
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["gpu_suite: failed: correctness", "gpu_suite: failed: bench_policy_loss"]
    lines = asked.read_text(encoding="utf-8").splitlines()
    for wanted in ("aapa.kernels.native.cuda", "-m pytest tests/triton", "benchmarks.kernels.gpu_head"):
        assert any(wanted in line for line in lines), wanted
    assert sum("benchmarks.kernels.bench_" in line for line in lines) == len(run.operations())
    assert (tmp_path / "results" / "tests.log").is_file()


@pytest.mark.parametrize("arguments", [["--dry-run", "--only", "head"], ["--only", "head", "--dry-run"]])
def test_options_come_in_any_order_and_a_dry_run_leaves_the_results_alone(stub, tmp_path, arguments):
    environment, asked = stub
    done = suite(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    # The last line is where results are: below TMPDIR.
    assert done.stdout.splitlines()[-1].startswith(f"==> {tmp_path}")
    (command,) = (line for line in asked.read_text(encoding="utf-8").splitlines() if "gpu_head" in line)
    assert "--smoke" in command
    assert "tests/triton" not in asked.read_text(encoding="utf-8")


def test_a_test_that_is_skipped_is_named(stub, tmp_path):
    environment, _ = stub
    file = Path(environment["PYTHON"])
    file.write_text(STUB.replace("echo yes", "echo"), encoding="utf-8")
    done = suite("--dry-run", "--only", "correctness", str(tmp_path / "out"), **environment)
    assert done.returncode == 0, done.stderr
    assert "segment_sentences in CUDA C++ is SKIPPED: there is no GPU" in done.stdout


@pytest.mark.slow
def test_a_dry_run_of_the_operations(tmp_path):
    done = suite("--dry-run", "--only", "operations", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for op in run.operations():
        rows = [json.loads(line) for line in (tmp_path / f"bench_{op}.jsonl").read_text("utf-8").splitlines()]
        assert op in rows[0]["resolved"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "no-such-revision"], "--base: expected a revision of this repository, got 'no-such-revision'"),
        (["--base", "--help"], "--base: expected one argument"),
        (["--rounds", "0"], "--rounds: expected a number above 0, got '0'"),
        (["--rounds", "-1"], "--rounds: expected a number above 0, got '-1'"),
        (["--device", "potato"], "--device: expected cpu, cuda or cuda:N, got 'potato'"),
        (["--device", "cuda:99"], "--device: expected a device that is here, got 'cuda:99'"),
        (["--output", str(ROOT)], "--output: expected a file that can be written"),
        (["--output", str(ROOT / "no" / "such" / "folder")], "--output: expected a file that can be written"),
    ],
)
def test_run_refuses_what_it_cannot_do(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(run, "run_cases", lambda *_: pytest.fail("measured before it was refused"))
    with pytest.raises(SystemExit) as refused:
        run.main(["--op", "policy_loss", *arguments])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_only_checked_is_not_left_behind(tmp_path):
    with pytest.raises(SystemExit):
        run.main(["--op", "policy_loss", "--output", str(tmp_path / "rows.jsonl"), "--rounds", "0"])
    assert not list(tmp_path.iterdir())


def test_rows_say_which_backend_ran():
    weight = torch.ones(4)
    fields = TokenFields(torch.zeros(4, dtype=torch.long), rl_weight_T=weight, advantage_T=weight)
    ours = Candidate("auto", lambda: policy_loss(-weight, None, fields, TokenLossSpec()))
    case = Case("policy_loss", {"T": 4}, "float32", [ours, Candidate("other", lambda: weight + 1, peer=True)])
    rows = measure(case, Options(torch.device("cpu"), smoke=True, rounds=1))
    assert [row.resolved for row in rows] == [{"policy_loss": "reference"}, {}]


def timed(ms: float, backend: str | None) -> run.Turn:
    return {("op", "{}", "float32", "auto", "forward"): run.Timed(ms, None if backend is None else {"op": backend})}


@pytest.mark.parametrize(("base", "compared"), [("native", True), (None, True), ("reference", False)])
def test_there_is_no_ratio_between_two_backends(base, compared, capsys):
    assert run.compare([timed(1.0, "native")] * 3, [timed(2.0, base)] * 3, "main") is compared
    assert ("ratio 0.500" in capsys.readouterr().out) is compared


@pytest.mark.parametrize(
    ("lacking", "other", "message"),
    [
        ("here", "native", "the C++ operations of this revision do not build:\nno compiler"),
        ("base", "native", "the C++ operations of main do not build:\nno compiler"),
        ("", "reference", "policy_loss runs native in this revision, and reference in main"),
        ("", "native", None),
    ],
)
def test_both_trees_are_built_and_have_the_same_backend(tmp_path, monkeypatch, lacking, other, message):
    file = tmp_path / "benchmarks" / "kernels" / "bench_policy_loss.py"
    file.parent.mkdir(parents=True)
    file.touch()
    asked = []
    monkeypatch.setattr(run, "build", lambda tree: asked.append(tree) or "no compiler")
    monkeypatch.setattr(run, "built", lambda tree: ("base" if tree == tmp_path else "here") != lacking)
    monkeypatch.setattr(run, "choice", lambda tree, op, device: other if tree == tmp_path else "native")
    if message is None:
        run.prepare(tmp_path, "policy_loss", "main", "cpu")
    else:
        with pytest.raises(run.NotComparable) as refused:
            run.prepare(tmp_path, "policy_loss", "main", "cpu")
        assert str(refused.value) == message
    assert asked == [ROOT, tmp_path]


def test_a_tree_is_asked_what_auto_takes_there():
    assert run.choice(ROOT, "policy_loss", "cpu") == "reference"
    with pytest.raises(run.NotComparable, match="KeyError: 'no_such_operation'"):
        run.choice(ROOT, "no_such_operation", "cpu")
