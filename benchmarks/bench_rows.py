"""Rows of one's own: seconds and resident memory until the first step, by number of rows.

    python benchmarks/bench_rows.py [--rows 100000] [--words 120] [--chat] [--parquet]

Makes the rows and a small model, then trains one step in a process of its own. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "had",
    "by",
    "not",
    "but",
    "what",
    "all",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--words", type=int, default=120, help="words of a prompt, and of each of its two experts")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--chat", action="store_true", help="prompts as messages")
    parser.add_argument("--parquet", action="store_true", help="Parquet instead of JSON lines")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder / "model", arguments.context)
            size = make_rows(folder, count, arguments)
            command = [sys.executable, "-W", "ignore", __file__, "--worker", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            facts = {"rows": count, "mb": round(size / 1e6, 1), "chat": arguments.chat, "parquet": arguments.parquet}
            print(json.dumps(facts | json.loads(done.stdout.splitlines()[-1])), flush=True)


def make_model(folder: Path, context: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<|im_end|>")
    words.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=context, tie_word_embeddings=True,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)


def make_rows(folder: Path, count: int, arguments: argparse.Namespace) -> int:
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=arguments.words))

    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = f"{number} {text()}"
            row = {"prompt": [{"role": "user", "content": prompt}] if arguments.chat else prompt}
            file.write(json.dumps(row | {"expert": [text(), text()], "answer": str(number)}) + "\n")
    if arguments.parquet:
        from datasets import Dataset

        Dataset.from_json(str(path), cache_dir=str(folder / "cache")).to_parquet(folder / "rows.parquet")
        path.unlink()
        path = folder / "rows.parquet"
    return path.stat().st_size


def worker(folder: Path) -> None:
    """One step; the clock starts before anything of ours is imported."""
    began = time.perf_counter()
    from aapa.engine import trainer
    from aapa.engine.recipe import parse_recipe

    stage = {"name": "sft", "steps": 1, "learning_rate": 1e-3, "objective": {"kind": "sft"}}
    recipe = {
        "name": "rows",
        "model": {"source": str(folder / "model")},
        "data": {"files": str(next(folder.glob("rows.*")))},
        "rollout": {"max_new_tokens": 8},
        "evaluation": {"prompts": 4, "final_prompts": 4},
        "stages": [stage],
    }
    imported = time.perf_counter() - began
    before = _peak_mb()
    seen: dict[str, float] = {}
    step = trainer.training_step

    def first_step(*words: object) -> object:
        seen.setdefault("seconds_to_first_step", time.perf_counter() - began)
        seen.setdefault("peak_mb_at_first_step", _peak_mb())
        return step(*words)  # type: ignore[arg-type]

    trainer.training_step = first_step  # type: ignore[assignment]
    trainer.train(parse_recipe(recipe), folder / "run")
    facts = {"seconds_imports": imported, **seen, "peak_mb_after_imports": before, "peak_mb_at_end": _peak_mb()}
    print(json.dumps({name: round(value, 1) for name, value in facts.items()}))


def _peak_mb() -> float:
    """Largest resident memory of this program; getrusage would count what its parent had before exec."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
