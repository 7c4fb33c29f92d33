"""Logs on disk: what is written comes back, and a resumed log has no row twice."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from aapa.engine.errors import UserError
from aapa.engine.metrics import (
    JsonLines,
    MetricsLog,
    Sample,
    SampleLog,
    ScoredSentence,
    histogram_counts,
    read_metrics,
    read_samples,
)


def board_of(run_dir: Path) -> EventAccumulator:
    board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    return board.Reload()


def test_rows_come_back(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("train", "sft", 1, 11, {"loss/total": 0.5, "anchor/histogram": [1, 2]})
        # In the file before anything is closed: another process may look at a live run.
        assert len(read_metrics(tmp_path)) == 1
        log.write("eval", "sft", 1, 11, {"eval/pass_rate": 0.25})
    assert read_metrics(tmp_path) == [
        {
            "kind": "train",
            "stage": "sft",
            "step": 1,
            "global_step": 11,
            "loss/total": 0.5,
            "anchor/histogram": [1, 2],
        },
        {"kind": "eval", "stage": "sft", "step": 1, "global_step": 11, "eval/pass_rate": 0.25},
    ]


def test_values_that_are_not_finite_are_null_with_their_key(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("train", "rl", 1, 1, {"a": math.nan, "b": math.inf, "c": None, "d": [1.0, math.nan]})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["d"] == [1.0, None]
    (row,) = read_metrics(tmp_path)
    assert all(math.isnan(row[key]) for key in "abc")


def test_scalars_of_torch_and_numpy(tmp_path: Path) -> None:
    figures = {
        "torch": torch.tensor(1.5, dtype=torch.bfloat16),
        "numpy": np.float32(0.25),
        "count": np.int64(3),
        "counts": torch.tensor([1, 2, 3]),
    }
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("train", "rl", 1, 1, figures)
    (row,) = read_metrics(tmp_path)
    assert [row[key] for key in figures] == [1.5, 0.25, 3, [1, 2, 3]]


def test_refuses_what_cannot_be_logged(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match=r"^loss: expected a number.*got dict"):
            log.write("train", "rl", 1, 1, {"loss": {}})
        with pytest.raises(ValueError, match=r"^figures: expected names other than"):
            log.write("train", "rl", 1, 1, {"step": 3})
    assert read_metrics(tmp_path) == []


def tag_events(board: EventAccumulator, tag: str) -> list[ScalarEvent]:
    return board.Scalars(tag) if tag in board.Tags()["scalars"] else []


def write_steps(log: MetricsLog, first: int, last: int, value: float) -> None:
    for step in range(first, last + 1):
        log.write("train", "rl", step, step, {"loss/total": value + step, "anchor/histogram": [1, 0, 3]})


def test_resume_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    write_steps(log, 1, 4, 0.0)
    offset = log.position()
    write_steps(log, 5, 7, 0.0)
    # The process goes on past the checkpoint and is killed while it writes a row.
    log.write("eval", "rl", 7, 7, {"eval/pass_rate": 0.1})
    log._board.flush()  # type: ignore[union-attr]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')

    with MetricsLog(tmp_path, offset) as resumed:
        assert resumed.position() == offset
        write_steps(resumed, 5, 6, 100.0)
    rows = read_metrics(tmp_path)
    assert [row["global_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss/total"] for row in rows] == [1, 2, 3, 4, 105, 106]

    board = board_of(tmp_path)
    events = board.Scalars("loss/total")
    assert [(event.step, event.value) for event in events] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 105),
        (6, 106),
    ]
    assert not [event for event in tag_events(board, "eval/pass_rate") if event.step > 6]
    assert [event.step for event in board.Histograms("anchor/histogram")] == [1, 2, 3, 4, 5, 6]


def test_evaluation_of_the_checkpointed_step_is_not_shown_twice(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    write_steps(log, 1, 3, 0.0)
    offset = log.position()
    log.write("eval", "rl", 3, 3, {"eval/pass_rate": 0.1})
    log.close()
    with MetricsLog(tmp_path, offset) as resumed:
        resumed.write("eval", "rl", 3, 3, {"eval/pass_rate": 0.2})
    board = board_of(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("eval/pass_rate")] == [(3, pytest.approx(0.2))]
    # The row which the log kept of that step is kept by TensorBoard too.
    assert [event.step for event in board.Scalars("loss/total")] == [1, 2, 3]
    assert Counter(row["kind"] for row in read_metrics(tmp_path)) == {"train": 3, "eval": 1}


def test_a_run_that_begins_again_forgets_the_rows_before(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        write_steps(log, 1, 5, 0.0)
    with MetricsLog(tmp_path) as log:
        write_steps(log, 1, 2, 50.0)
    assert [row["loss/total"] for row in read_metrics(tmp_path)] == [51, 52]
    assert [event.value for event in board_of(tmp_path).Scalars("loss/total")] == [51, 52]


def test_resume_refuses_a_log_that_is_not_the_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match=r"metrics\.jsonl: expected at least the 10 bytes .*, got 0"):
        MetricsLog(tmp_path, 10, tensorboard=False)
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(UserError, match="expected the end of a line at byte 4"):
        MetricsLog(tmp_path, 4, tensorboard=False)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_position_is_the_size_after_what_was_written(tmp_path: Path) -> None:
    with SampleLog(tmp_path) as log:
        assert log.position() == 0
        log.write(Sample("sft", 1, "p", "réponse 茶", None, None, None))
        assert log.position() == os.path.getsize(tmp_path / "samples.jsonl") > 0


def test_a_failed_write_leaves_the_file_whole(tmp_path: Path) -> None:
    class FullDisk:
        """Takes three bytes, then has no room."""

        def __init__(self, file: object) -> None:
            self.file = file
            self.room = 3

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            written = self.file.write(data[: self.room])  # type: ignore[attr-defined]
            self.room = 0
            return written

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    log = JsonLines(tmp_path / "log.jsonl", None)
    log.append({"a": 1})
    disk, log._file = log._file, FullDisk(log._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        log.append({"b": 2})
    log._file = disk
    log.append({"c": 3})
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"a": 1}\n{"c": 3}\n'


ROW = '{"kind": "train", "stage": "s", "step": 1, "global_step": 1}'


def test_only_the_last_line_may_be_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{ROW}\n{ROW}\n{{"kind": "tr')
    assert len(read_metrics(tmp_path)) == 2
    path.write_bytes(ROW.encode() + b'\n{"kind": "\xe8')
    assert len(read_metrics(tmp_path)) == 1
    path.write_text(f"{ROW}\n{ROW}")
    assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("line", ['{"kind": "tr', "", "[1]", "nonsense", '{"kind": "train"}'])
def test_damage_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{ROW}\n{line}\n{ROW}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: expected"):
        read_metrics(tmp_path)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: expected a file, got none"):
        read_metrics(tmp_path)


def test_samples_come_back(tmp_path: Path) -> None:
    sentences = (ScoredSentence("First\u2028one.", -1.25), ScoredSentence(" More\x85.", None))
    sample = Sample("rl", 5, "prompt\nof two lines", "First\u2028one. More\x85.", "expert", 1.0, True, sentences)
    with SampleLog(tmp_path) as log:
        log.write(sample)
        offset = log.position()
        log.write(sample)
    with SampleLog(tmp_path, offset) as log:
        log.write(Sample("rl", 6, "p", "\ud800 lone surrogate", None, math.nan, None))
    first, second = read_samples(tmp_path)
    assert first == sample
    assert second == Sample("rl", 6, "p", "? lone surrogate", None, None, None)


def test_samples_with_other_fields_are_named(tmp_path: Path) -> None:
    with SampleLog(tmp_path) as log:
        log.write(Sample("rl", 1, "p", "r", None, None, None))
    path = tmp_path / "samples.jsonl"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"sentences": [{"txt": "x"}]}) + "\n")
    with pytest.raises(UserError, match=r"samples\.jsonl:2: expected the fields of a sample"):
        read_samples(tmp_path)
    path.write_text('{"stage": "rl"}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl:1: expected the key 'step'"):
        read_samples(tmp_path)


def test_histogram_counts() -> None:
    values = [-9.0, -3.0, -2.9, -0.001, 0.0, 2.99, 3.0, 7.0, math.nan]
    assert histogram_counts(values, bins=6) == [3, 0, 1, 1, 0, 3]
    assert sum(histogram_counts(values)) == 8
    assert histogram_counts([0.4], limit=0.5, bins=2) == [0, 1]


def test_histogram_bounds_in_tensorboard_follow_the_clip(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write("train", "rl", 1, 1, {"anchor/histogram": [2, 0, 0, 4], "anchor/clip": 2.0})
    (event,) = board_of(tmp_path).Histograms("anchor/histogram")
    histogram = event.histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (-2.0, 2.0, 6.0)
    # TensorBoard closes the buckets with an empty one on either side.
    edges = [edge for edge, count in zip(histogram.bucket_limit, histogram.bucket, strict=True) if count]
    assert edges == [-1.0, 2.0]
    assert histogram.sum == pytest.approx(2 * -1.5 + 4 * 1.5)
