"""Examples as tokens, the order they come in, rewards and checkpoints as files."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.engine import checkpoint
from aapa.engine.data import Sampler, tokenize, tokenize_corpus
from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks import load_task


@pytest.fixture(scope="module")
def tokenizer():
    return load_task("mini-if").tokenizer()


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 30), count=st.integers(1, 40), steps=st.integers(1, 8), seed=st.integers(0, 99))
def test_every_epoch_draws_every_example_once(size, count, steps, seed):
    sampler = Sampler(size, seed, "sft")
    drawn = [index for step in range(steps) for index in sampler.batch(step, count)]
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_step_can_be_drawn_without_the_steps_before_it():
    a, b = Sampler(17, 3, "rl"), Sampler(17, 3, "rl")
    in_order = [a.batch(step, 5) for step in range(20)]
    assert [b.batch(step, 5) for step in (19, 0, 7)] == [in_order[19], in_order[0], in_order[7]]
    assert [Sampler(17, 4, "rl").batch(s, 5) for s in range(20)] != in_order
    assert [Sampler(17, 3, "sft").batch(s, 5) for s in range(20)] != in_order


def test_experts_end_with_end_of_sequence(tokenizer):
    example = Example(3, "About tea: no commas.\n\n", ("Tea is warm.", "So taste tea."), {})
    (made,) = tokenize([example], tokenizer, 64, "train")
    assert tokenizer.decode(made.prompt) == example.prompt
    assert [tokenizer.decode(e[:-1]) for e in made.experts] == list(example.experts)
    assert all(e[-1] == tokenizer.eos_token_id for e in made.experts)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(7, "", ("x.",), {}), r"data\.train\[7\]\.prompt: expected at least one token"),
        (Example(7, "a", (), {}), r"data\.train\[7\]\.experts: expected at least one response"),
        (Example(7, "a", ("b c d. " * 40,), {}), r"data\.train\[7\]: expected at most 64 tokens"),
    ],
)
def test_bad_examples_are_named(tokenizer, example, message):
    with pytest.raises(UserError, match=message):
        tokenize([example], tokenizer, 64, "train")


def test_corpus_texts_follow_an_end_of_sequence_and_are_cut_to_the_context(tokenizer):
    short, long = tokenize_corpus(["Tea is warm.", "tea " * 100], tokenizer, 20)
    assert short.prompt == [tokenizer.eos_token_id]
    assert short.experts[0][-1] == long.experts[0][-1] == tokenizer.eos_token_id
    assert len(long.prompt) + len(long.experts[0]) == 20


def save(folder, step, keep=3):
    def write(directory):
        (directory / "part").mkdir()
        (directory / "part" / "weights").write_bytes(bytes(range(200)) + bytes([step]))

    one = SimpleNamespace(is_main=True, barrier=lambda: None, tensor=1, pipeline=1, context=1, data=1)
    checkpoint.save(folder, step, {"step": step}, write, keep, one)


def test_a_checkpoint_returns_what_was_saved_and_old_ones_go(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]
    found, refused = checkpoint.latest(tmp_path)
    assert not refused
    assert found.state == {"step": 8}
    assert (found.path / "part" / "weights").read_bytes()[-1] == 8


def test_any_flipped_byte_truncation_or_missing_file_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    counts: Counter[str] = Counter()
    for name in ("part/weights", "state.json", "manifest.json"):
        for damage in ("flip", "cut", "remove"):
            save(tmp_path, 2)
            file = tmp_path / "step-00000002" / name
            content = bytearray(file.read_bytes())
            if damage == "flip":
                content[len(content) // 3] ^= 4
                file.write_bytes(content)
            elif damage == "cut":
                file.write_bytes(content[:-1])
            else:
                file.unlink()
            found, refused = checkpoint.latest(tmp_path)
            assert found is not None
            assert found.state == {"step": 1}, (name, damage)
            assert len(refused) == 1
            counts[name] += name in refused[0] or name == "manifest.json"
    assert counts == {"part/weights": 3, "state.json": 3, "manifest.json": 3}


def test_pruning_keeps_what_is_valid(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / "part" / "weights").write_bytes(b"damaged")
    assert checkpoint.latest(tmp_path)[0].state == {"step": 10}
    save(tmp_path, 12, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]
    save(tmp_path, 12, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000012"]


def test_an_edited_manifest_is_refused(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-00000001" / "manifest.json"
    file.write_text(file.read_text().replace('"tensor": 1', '"tensor": 2'))
    found, refused = checkpoint.latest(tmp_path)
    assert found is None
    assert "manifest.json as it was written, got one that was changed" in refused[0]


@pytest.mark.parametrize("content", ["[]", "null", "7"])
def test_a_manifest_that_is_no_table_is_refused(tmp_path, content):
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "manifest.json").write_text(content)
    found, refused = checkpoint.latest(tmp_path)
    assert found is None
    assert "manifest.json" in refused[0] and "expected a table of files" in refused[0]


def test_ids_that_are_not_unique_are_refused(tokenizer):
    twice = [Example(3, "a", ("b",), {}), Example(3, "c", ("d",), {})]
    with pytest.raises(UserError, match=r"data\.train: expected examples with an integer id each of its own, got 3"):
        tokenize(twice, tokenizer, 64, "train")


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    save(tmp_path, 1)
    staging = tmp_path / ".step-00000002.staging"
    staging.mkdir()
    (staging / "state.json").write_text(json.dumps({"step": 2}))
    assert checkpoint.latest(tmp_path)[0].state == {"step": 1}
