"""Rows of one's own: reading, what makes a row unusable, the chat template, splits, and runs on them."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from own_rows import model_directory, rows, table, tokenizer, write_rows
from runs import figures, same, weights

from aapa.engine.data import tokenized
from aapa.engine.data_files import FileTask
from aapa.engine.data_prompts import Renderer, RowRules, end_of_turn
from aapa.engine.data_rows import open_dataset, open_files
from aapa.engine.data_scan import held_out, scan_rows
from aapa.engine.errors import Interrupted, UserError
from aapa.engine.metrics import read_metrics, read_samples
from aapa.engine.recipe import parse_recipe
from aapa.engine.trainer import train

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Describe a cat."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("own") / "model")


def rules(**changes) -> RowRules:
    given = {"prompt_column": "prompt", "expert_column": "expert", "needs_experts": True, "wrap_prompts": False}
    return RowRules(**(given | {"template_kwargs": {}, "longest_prompt": 40, "longest": 48} | changes))


def scan(tmp_path: Path, content, words=None, **changes):
    found = open_files([str(write_rows(tmp_path / "rows.jsonl", content))], "data.files")
    renderer = Renderer(words or tokenizer(), rules(**changes))
    return found, scan_rows(found, renderer), renderer


def test_lines_are_found_by_their_place(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "\xc3\xa9"}\r\n{"prompt": "c"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "d"}\n'))
    found = open_files([str(tmp_path / "b.jsonl.gz"), str(tmp_path / "*.jsonl")], "data.files")
    assert [found.row(i)["prompt"] for i in range(len(found))] == ["d", "a", "é", "c"]
    places = [found.place(i).removeprefix(f"{tmp_path}/") for i in range(len(found))]
    assert places == ["b.jsonl.gz:1", "a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]
    before = found.digest
    (tmp_path / "a.jsonl").write_bytes(content.replace(b'"c"', b'"C"'))
    assert open_files([str(tmp_path / "b.jsonl.gz"), str(tmp_path / "*.jsonl")], "data.files").digest != before


def test_parquet_and_saved_datasets_hold_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    content = rows(2500, chat=True)
    made = Dataset.from_list(content)
    made.to_parquet(tmp_path / "rows.parquet")
    DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "saved")
    write_rows(tmp_path / "one.jsonl", content[:1])
    parquet = open_files([str(tmp_path / "one.jsonl"), str(tmp_path / "rows.parquet")], "data.files")
    saved = open_dataset(str(tmp_path / "saved"), None, "train")
    assert [parquet.row(i) for i in (0, 1, 2, 2500)] == [content[i] for i in (0, 0, 1, 2499)]
    assert parquet.place(2500) == f"{tmp_path}/rows.parquet:2500"
    assert [row for _, row in saved.scan()] == content == [row for _, row in parquet.scan()][1:]
    assert len(open_dataset(str(tmp_path / "saved"), None, "test")) == 1
    with pytest.raises(UserError, match=r"data\.split: expected one of train, test, got 'dev'"):
        open_dataset(str(tmp_path / "saved"), None, "dev")


GOOD = {"prompt": "p", "expert": "e"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"prompt": "\xff"}', "expected UTF-8, got byte 0xff at 12"),
        ('{"prompt": "a"', "expected a JSON object, got text that is none"),
        ("[1]", "expected a JSON object, got list"),
        ("[" * 100_000, "expected a JSON object, got one nested too deeply"),
        ('{"prompt": "a", "prompt": "b"}', "expected each key once, got 'prompt' twice"),
        ({"expert": "e"}, "prompt: expected a text or messages, got nothing"),
        ({"prompt": 3, "expert": "e"}, "prompt: expected a text or messages, got int"),
        ({"prompt": " \n", "expert": "e"}, "prompt: expected a text that is not empty"),
        ('{"prompt": "\\ud800", "expert": "e"}', "prompt: expected Unicode text, got half a surrogate pair at 0"),
        ({"prompt": [], "expert": "e"}, "prompt: expected at least one message, got none"),
        ({"prompt": [USER, "hi"], "expert": "e"}, r"prompt\[1\]: expected {\"role\": …, \"content\": …}, got 'hi'"),
        ({"prompt": [{"role": "user"}], "expert": "e"}, r"prompt\[0\]\.content: expected a text, got NoneType"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "expert": "e"}, "end before the answer"),
        ({"prompt": [{"role": "tool", "content": "x"}], "expert": "e"}, "for the chat template, got no tools here"),
        ({"prompt": "p"}, "expert: expected an expert response, got nothing"),
        ({"prompt": "p", "expert": []}, "expert: expected at least one response, got none"),
        ({"prompt": "p", "expert": ["e", ""]}, "expert: expected a text that is not empty"),
        ({"prompt": "p", "expert": ["e", 3]}, "expert: expected a text or a list of texts"),
        ({"prompt": "zq" * 30, "expert": "e"}, r"prompt: expected at most 40 tokens, .*, got 60"),
        ({"prompt": "p", "expert": ["e", "zq" * 30]}, r"expert: expected at most 48 tokens with its prompt.*got 62"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row, reason: str) -> None:
    _, scanned, _ = scan(tmp_path, [GOOD, row, GOOD])
    assert list(scanned.good) == [0, 2]
    ((place, text),) = scanned.bad
    assert place == f"{tmp_path}/rows.jsonl:2"
    assert re.search(reason, text), text


def test_lengths_are_those_of_the_tokens_exactly(tmp_path: Path) -> None:
    """At the limit is good and one more is bad, whatever a bound made of bytes would say."""
    words = tokenizer()
    text = "Describe a cat. " * 20
    size = len(words.encode(text, add_special_tokens=False))
    assert size < len(text.encode())
    for limit, good in ((size, [0]), (size - 1, [])):
        _, scanned, _ = scan(tmp_path, [{"prompt": text}], words, needs_experts=False, longest_prompt=limit)
        assert list(scanned.good) == good
    for limit, good in ((size + 2, [0]), (size + 1, [])):  # a prompt of one token, and the end of sequence
        row = {"prompt": "z", "expert": text}
        _, scanned, _ = scan(tmp_path, [row], words, longest=limit)
        assert list(scanned.good) == good


def test_messages_go_through_the_template(tmp_path: Path) -> None:
    words = tokenizer()
    _, scanned, renderer = scan(tmp_path, [{"prompt": [SYSTEM, USER], "expert": "e"}], words)
    assert list(scanned.good) == [0]
    assert scanned.chat
    start = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nDescribe a cat.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.text((SYSTEM, USER)) == start
    quiet = Renderer(words, rules(template_kwargs={"enable_thinking": False}))
    assert quiet.text((SYSTEM, USER)) == f"{start}<think></think>"
    assert Renderer(words, rules()).text("plain") == "plain"
    wrapped = Renderer(words, rules(wrap_prompts=True)).text("plain")
    assert wrapped == "<|im_start|>user\nplain<|im_end|>\n<|im_start|>assistant\n"
    assert end_of_turn(words, {}) == "<|im_end|>"
    assert end_of_turn(tokenizer("{{ messages[1].content }}{{ eos_token }}"), {}) == "<eos>"
    assert end_of_turn(tokenizer("{{ messages[1].content }} and so on"), {}) == "<eos>"


def test_a_tokenizers_own_start_of_text_stands_before_plain_prompts() -> None:
    from tokenizers.processors import TemplateProcessing

    words = tokenizer(bos_token="<|im_start|>")
    bos = words.convert_tokens_to_ids("<|im_start|>")
    words.backend_tokenizer.post_processor = TemplateProcessing(
        "<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    renderer = Renderer(words, rules())
    assert renderer.text("hi") == "<|im_start|>hi"
    assert words.encode(renderer.text("hi"), add_special_tokens=False) == words.encode("hi")


def test_held_out_prompts_depend_on_the_prompts_alone(tmp_path: Path) -> None:
    content = [*rows(200), *rows(200)]  # every prompt twice
    found, scanned, _ = scan(tmp_path, content)
    parts = held_out(scanned, 0.1)
    prompts = [{found.row(int(i))["prompt"] for i in part} for part in parts]
    assert [len(part) for part in parts] == [360, 20, 20]
    assert [len(part) for part in prompts] == [180, 10, 10]
    assert len(set.union(*prompts)) == 200
    shuffled = [content[i] for i in np.random.default_rng(0).permutation(400)]
    again, rescanned, _ = scan(tmp_path, shuffled)
    assert [{again.row(int(i))["prompt"] for i in part} for part in held_out(rescanned, 0.1)] == prompts


def task(model: Path, files, kind: str = "sft", words=None, **data) -> FileTask:
    return FileTask(parse_recipe(table(model, files, kind, **data)), words or tokenizer(), 64, quiet=True)


def test_the_task_hands_over_examples(model: Path, tmp_path: Path) -> None:
    words = tokenizer()
    made = task(model, str(write_rows(tmp_path / "rows.jsonl", rows(100, chat=True))), words=words)
    assert words.eos_token == "<|im_end|>", "responses end as the template ends them"
    assert {split: len(made.examples(split)) for split in ("train", "dev", "test")} == {
        "train": 80,
        "dev": 10,
        "test": 10,
    }
    examples = tokenized(made.examples("train"), words, 64, "train")
    first = examples[0]
    assert first is examples[0], "the last ones are kept"
    assert words.decode(first.prompt) == first.example.prompt
    assert first.example.messages is not None
    assert first.example.columns.keys() == {"expert", "answer"}
    assert [words.decode(e) for e in first.experts] == [f"{e}<|im_end|>" for e in first.example.experts]
    assert [e.example.id for e in examples[2:4]] == [examples[i].example.id for i in (2, 3)]
    with pytest.raises(UserError, match="expected one of train, dev, test, got 'held_out'"):
        made.examples("held_out")


def test_evaluation_files_make_the_final_split(model: Path, tmp_path: Path) -> None:
    files = str(write_rows(tmp_path / "rows.jsonl", rows(100)))
    other = str(write_rows(tmp_path / "other.jsonl", rows(7)))
    made = task(model, [files], evaluation_files=other)
    assert [len(made.examples(split)) for split in ("train", "dev", "test")] == [80, 20, 7]
    made = task(model, [files], evaluation_files=other, held_out=0.0)
    assert [len(made.examples(split)) for split in ("train", "dev", "test")] == [100, 7, 7]


def test_verdicts_follow_from_rewards(model: Path, tmp_path: Path) -> None:
    made = task(model, str(write_rows(tmp_path / "rows.jsonl", rows(20))))
    examples = list(made.examples("train")[:3])
    assert made.judge(examples, ["a", "b", "c"], [True] * 3) == {}
    made.rewards = lambda *_: [0.5, 0.4, float("nan")]
    verdicts = made.judge(examples, ["a", "b", "c"], [True] * 3)
    assert verdicts["constraints"] == [1.0, 0.0, 0.0]


@pytest.fixture
def color(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reward_of_rows.py").write_text(
        "def color(prompts, completions, answer, **columns):\n"
        "    return [text.count(a[0]) / 10 for text, a in zip(completions, answer)]\n"
        "def fails(completions, **columns):\n"
        "    raise RuntimeError('never')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_sft_draws_among_experts_and_resumes_bit_identically(model: Path, tmp_path: Path, monkeypatch) -> None:
    from aapa.engine import step as steps

    files = str(write_rows(tmp_path / "rows.jsonl", [*rows(30, chat=True), {"prompt": "no expert"}]))
    recipe = table(model, files, steps=40, max_bad_fraction=0.05) | {"checkpoint": {"every": 5}}
    chosen: Counter[tuple[int, int]] = Counter()
    real = steps._expert

    def spy(example, draw):
        sequence = real(example, draw)
        chosen[example.example.id, [list(e) for e in example.experts].index(sequence.response.tolist())] += 1
        return sequence

    monkeypatch.setattr(steps, "_expert", spy)
    train(parse_recipe(recipe), tmp_path / "whole")
    counts = Counter(place for _, place in chosen.elements())
    assert set(counts) == {0, 1}
    assert min(counts.values()) > 40
    per_prompt = {identity: {p for i, p in chosen if i == identity} for identity, _ in chosen}
    assert sum(places == {0, 1} for places in per_prompt.values()) > len(per_prompt) / 2, "epochs differ"
    words = AutoTokenizer.from_pretrained(tmp_path / "whole" / "final")
    assert words.eos_token == "<|im_end|>", "whoever samples from the policy stops where it was taught to"
    settings = json.loads((tmp_path / "whole" / "final" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [words.eos_token_id, words.convert_tokens_to_ids("<eos>")]
    lines = (tmp_path / "whole" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [31]

    class Stop(Exception):
        pass

    def stop_at_17(run, stage, step):
        if step == 17:
            raise Interrupted("as if by SIGTERM")
        return training_step(run, stage, step)

    from aapa.engine import trainer

    training_step = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", stop_at_17)
    with pytest.raises(Interrupted):
        train(parse_recipe(recipe), tmp_path / "cut")
    monkeypatch.setattr(trainer, "training_step", training_step)
    train(parse_recipe(recipe), tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")

    write_rows(tmp_path / "rows.jsonl", rows(31, chat=True))
    with pytest.raises(UserError, match="expected the 31 rows that the run in .* began with"):
        train(parse_recipe(recipe), tmp_path / "cut")


@pytest.mark.usefixtures("color")
def test_grpo_needs_no_experts(model: Path, tmp_path: Path) -> None:
    content = [{key: value for key, value in row.items() if key != "expert"} for row in rows(40)]
    files = str(write_rows(tmp_path / "rows.jsonl", content))
    train(parse_recipe(table(model, files, "grpo", steps=3)), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["stage"] for row in summary] == ["start", "only"]
    assert all(row["expert_logprob"] is None and row["length_ratio"] is None for row in summary)
    assert all(0 <= row["pass_rate"] <= 1 and row["reward"] >= 0 for row in summary)
    trained = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert len(trained) == 3
    assert all(row["reward/failed"] == 0 for row in trained)
    assert read_samples(tmp_path / "run")[0].expert == ""
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.usefixtures("color")
def test_a_reward_that_always_fails_ends_the_run_with_a_fault(model: Path, tmp_path: Path) -> None:
    from aapa.engine.errors import TrainingFault

    files = str(write_rows(tmp_path / "rows.jsonl", rows(40)))
    recipe = table(model, files, "grpo", steps=9)
    recipe["stages"][0]["rewards"] = [{"function": "reward_of_rows:fails"}]
    with pytest.raises(TrainingFault, match="at most 5% of 200 samples .* the last: .*RuntimeError: never"):
        train(parse_recipe(recipe), tmp_path / "run")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows() -> None:
    """100 000 rows of 143 MB, of which 99 000 more cost less than their text does by far."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_rows.py"
    command = [sys.executable, str(script), "--rows", "1000", "100000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert large["mb"] > 140
    assert large["peak_mb_at_first_step"] - small["peak_mb_at_first_step"] < 40
