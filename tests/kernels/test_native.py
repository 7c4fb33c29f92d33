"""The C++ operations: contracts with torch, every instruction set, threads, and what happens where they are missing."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import SentenceTable, dispatch, native, segment_sentences
from aapa.kernels.chunked.glue import Glue, RowTerms, finish
from aapa.kernels.native import cuda
from aapa.kernels.native.glue import NativeGlue
from aapa.kernels.reference.reference_head import _sentence_means as reference_means
from aapa.kernels.reference.segment_sentences import segment_sentences as reference_segments

built = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def table(seed: int, vocabulary: int = 7, classes: int = 4, states: int = 3) -> SentenceTable:
    g = torch.Generator().manual_seed(seed)
    shape = (classes, states)
    return SentenceTable(
        class_V=torch.randint(classes, (vocabulary,), generator=g, dtype=torch.int32),
        next_CQ=torch.randint(states, shape, generator=g, dtype=torch.uint8),
        cut_CQ=torch.rand(shape, generator=g) < 0.4,
        mark_CQ=torch.rand(shape, generator=g) < 0.6,
    )


def parts(which: SentenceTable) -> tuple[torch.Tensor, ...]:
    return which.class_V, which.next_CQ, which.cut_CQ, which.mark_CQ


@built
@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    seed=st.integers(0, 10_000),
    states=st.sampled_from([1, 3, 256]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_segments_are_the_references_bit_for_bit(lengths, seed, states, dtype):
    which = table(seed, vocabulary=50, classes=20, states=states)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = torch.randint(0, 50, (int(cu[-1]),), generator=torch.Generator().manual_seed(seed)).to(dtype)
    got = segment_sentences(tokens, cu, which, backend="native")
    want = reference_segments(tokens, cu, which)
    assert got.dtype == want.dtype and torch.equal(got, want)


@built
def test_segments_do_not_depend_on_threads():
    which = table(1, vocabulary=50, classes=20)
    cu = torch.tensor([0, 40_000, 40_000, 40_001, 90_000], dtype=torch.int32)
    tokens = torch.randint(0, 50, (90_000,), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(segment_sentences(tokens, cu, which, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) > 1000
    assert all(torch.equal(other, found[0]) for other in found)


@built
def test_the_operation_itself_refuses_what_would_read_outside():
    which, cu = table(0), torch.tensor([0, 2], dtype=torch.int32)
    for tokens in ([0, 7], [-1, 0]):
        with pytest.raises(ValueError, match="token_T: expected ids"):
            torch.ops.aapa.segment_sentences(torch.tensor(tokens), cu, *parts(which))
    with pytest.raises(ValueError, match="cu_seqlens"):
        torch.ops.aapa.segment_sentences(torch.tensor([0]), cu, *parts(which))
    broken = (which.class_V, which.next_CQ + 9, which.cut_CQ, which.mark_CQ)
    with pytest.raises(ValueError, match="next_CQ: expected states"):
        torch.ops.aapa.segment_sentences(torch.tensor([0, 1]), cu, *broken)
    with pytest.raises(RuntimeError, match="column: expected"):
        torch.ops.aapa.head_statistics(torch.zeros(2, 3), torch.tensor([0, 3]), None)
    with pytest.raises(RuntimeError, match="scale: expected"):
        torch.ops.aapa.head_statistics(torch.zeros(2, 3), torch.tensor([0, 2]), torch.ones(3))
    with pytest.raises(ValueError, match="cu_sents: expected"):
        torch.ops.aapa.sentence_means(torch.zeros(3, 2), torch.tensor([0, 4]))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    logits, column = torch.randn(3, 20, dtype=dtype), torch.tensor([0, -1, 19])
    vectors = [torch.rand(3, dtype=dtype) for _ in range(4)]
    check = torch.library.opcheck
    check(torch.ops.aapa.head_statistics.default, (logits, column, vectors[0]))
    check(torch.ops.aapa.head_statistics.default, (logits, column, None))
    check(torch.ops.aapa.head_gradient_.default, (logits, column, vectors[0], *vectors[1:], vectors[0]))
    check(torch.ops.aapa.head_gradient_.default, (logits, column, None, *vectors[1:], None))
    cu = torch.tensor([0, 2, 3], dtype=torch.int32)
    check(torch.ops.aapa.sentence_means.default, (logits, cu))
    check(torch.ops.aapa.segment_sentences.default, (torch.tensor([1, 2, 3]), cu, *parts(table(0))))


@built
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sentence_means_are_the_references_bit_for_bit(dtype):
    cu = torch.tensor([0, 1, 8, 9, 300], dtype=torch.int32)
    hidden = torch.randn(300, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    assert torch.equal(torch.ops.aapa.sentence_means(hidden, cu), reference_means(hidden, cu))
    assert torch.ops.aapa.sentence_means(hidden[:0], cu[:1]).shape == (0, 37)


def glue_errors() -> None:
    """Run in a process of its own per instruction set: errors against float64 beside those of torch's operations."""
    g = torch.Generator().manual_seed(0)
    for columns in (1, 7, 16, 31, 2048, 2049, 5000):
        rows = 19
        logits = 5 * torch.randn(rows, columns, generator=g)
        logits[0] *= 100
        column = torch.randint(-1, columns, (rows,), generator=g)
        scale, g_R, e_R = 0.5 + torch.rand(3, rows, generator=g)
        truth = Glue().statistics(logits.double(), column, scale.double())
        plain, ours = (glue.statistics(logits, column, scale) for glue in (Glue(), NativeGlue()))
        for got, same, want in zip(finish(ours), finish(plain), finish(truth), strict=True):
            assert (got - want).abs().max() <= 1.5 * (same - want).abs().max() + 1e-6, columns
        _, entropy, lse = finish(truth)
        for spread in (None, e_R):
            terms = RowTerms(column, scale, lse.float(), entropy.float(), g_R, spread)
            exact = RowTerms(
                column, scale.double(), lse, entropy, g_R.double(), None if spread is None else spread.double()
            )
            want = Glue().gradient(logits.double(), column, exact, torch.float64)
            same, got = (glue.gradient(logits.clone(), column, terms, torch.float32) for glue in (Glue(), NativeGlue()))
            assert (got - want).abs().max() <= 1.5 * (same - want).abs().max() + 1e-6, columns
    bad = torch.zeros(2, 40)
    bad[0, 3], bad[1, 39] = float("nan"), float("nan")  # in a vector, and in what is left of the row
    assert NativeGlue().statistics(bad, torch.zeros(2, dtype=torch.long), None)[1].isnan().all()
    print("checked", torch.ops.aapa.head_instruction_set())


@built
@pytest.mark.parametrize(("capability", "name"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_every_instruction_set_is_as_exact_as_torch(capability, name):
    code = f"import runpy; runpy.run_path({__file__!r})['glue_errors']()"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    if capability != "default" and not newest().startswith(("AVX512", name.upper())):
        pytest.skip(f"this processor has no {name}")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["checked", name]


def newest() -> str:
    """The newest instruction set that torch finds here, whatever the environment chooses."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("nvcc") is None and "NVCC" not in os.environ, reason="there is no nvcc")
def test_the_cuda_sources_compile_and_their_symbols_load(tmp_path):
    library = ctypes.CDLL(str(cuda.compile_library(tmp_path / "_cuda.so")))
    assert library.aapa_segment_sentences_count and library.aapa_segment_sentences_write


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or cuda.missing() is not None, reason="no GPU, or not compiled")
def test_segments_on_a_gpu_are_the_references():
    which = table(3, vocabulary=50, classes=20, states=9)
    cu = torch.tensor([0, 0, 40, 41, 41, 3000], dtype=torch.int32)
    tokens = torch.randint(0, 50, (3000,), generator=torch.Generator().manual_seed(3))
    got = segment_sentences(tokens.cuda(), cu.cuda(), which, backend="native")
    assert torch.equal(got.cpu(), reference_segments(tokens, cu, which))


@pytest.fixture
def fresh_dispatch():
    """Dispatch that has chosen nothing yet, before and after."""
    caches = (dispatch._choose, dispatch._extension_obstacle)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_without_the_extension_references_run_and_that_is_said_once(fresh_dispatch, monkeypatch, caplog):
    monkeypatch.setattr(native, "missing", lambda: "not built, for this test")
    caplog.set_level(logging.INFO, "aapa.kernels")
    for _ in range(2):
        for op in ("segment_sentences", "linear_logprob", "linear_policy_loss"):
            assert dispatch.resolve(op).__name__ == f"aapa.kernels.reference.{op}"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["operations run on their torch references, which is slower: not built, for this test"]
    with pytest.raises(ValueError, match=r"got 'native': not built, for this test"):
        dispatch.resolve("segment_sentences", "native")


@built
def test_auto_chooses_once_and_logs_it_once(fresh_dispatch, caplog):
    caplog.set_level(logging.INFO, "aapa.kernels")
    for _ in range(3):
        assert dispatch.resolve("linear_logprob").__name__ == "aapa.kernels.native.linear_logprob"
    assert [record.getMessage() for record in caplog.records] == ["linear_logprob on cpu: native"]
    assert dispatch.resolve("linear_logprob", "reference").__name__ == "aapa.kernels.reference.linear_logprob"


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert dispatch.OBSTACLES["triton"]("linear_logprob", "cpu") == "Triton's kernels need a GPU"
    assert "CPU" in dispatch.OBSTACLES["native"]("linear_logprob", "cuda")
    with pytest.raises(ValueError, match="backend: expected one of auto, .*reference for anchor_advantages"):
        dispatch.resolve("anchor_advantages", "native")
