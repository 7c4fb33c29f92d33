"""Rewards of the example: functions in TRL's signature, run in processes of their own."""

import re


def correct(prompts, completions, answer, **columns):
    """1 for the right number behind the last 'Answer:', else 0; prompts are messages, so completions are, too."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        found = re.findall(r"Answer:\s*(-?\d+)", completion[0]["content"])
        rewards.append(float(bool(found) and int(found[-1]) == right))
    return rewards


def brief(completions, completion_ids, log_metric, **columns):
    """0 up to 80 tokens, and falling to -1 at 160."""
    lengths = [len(ids) for ids in completion_ids]
    log_metric("tokens", sum(lengths) / len(lengths))
    return [-min(max(length - 80, 0) / 80, 1.0) for length in lengths]
