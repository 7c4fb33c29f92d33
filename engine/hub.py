"""Models by their name on the Hugging Face hub: fetched once, by one rank, into the hub's own cache."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from aapa.engine.errors import UserError

if TYPE_CHECKING:
    from aapa.engine.policy.parallel import Parallel

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+(/[\w.-]+)*)?", re.ASCII)
# Beside the weights, what a checkpoint needs to be used, and its licence. As glob patterns.
TRAVELLING = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# Never pickles or code: what is not needed is not fetched.
FILES = [*TRAVELLING, "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
# Between two signs of life to ranks that wait, far below any time-out of a collective.
_BEAT_SECONDS = 5.0


def looks_like_hub_name(source: str) -> bool:
    """Whether `source` is OWNER/NAME or OWNER/NAME@REVISION, as relative paths of two parts are too."""
    return bool(_NAME.fullmatch(source))


def is_hub_name(source: str) -> bool:
    """Whether `source` looks like a name on the hub, and is no path that exists."""
    return looks_like_hub_name(source) and not Path(source).exists()


def local_directory(source: str, parallel: Parallel, field: str = "model.source") -> Path:
    """The directory of a model, which is fetched if `source` is a name on the hub; a directory needs no network.

    A collective over all ranks if it is a name: rank 0 fetches while the others wait, and then all find the same
    commit in the cache.

    Raises:
        UserError: the name cannot be fetched, or this machine's cache does not hold what rank 0 fetched; on all ranks.
    """
    if not is_hub_name(source):
        return Path(source)
    name, _, revision = source.partition("@")
    if parallel.is_main:
        with ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(_fetch, name, revision or None, FILES)
            while (outcome := _outcome(fetching)) is None:
                parallel.from_main(None)
            parallel.from_main(outcome)
    else:
        while (outcome := parallel.from_main(None)) is None:
            pass
    commit, problem = outcome
    if problem is not None:
        raise _refusal(field, source, problem)
    return _cached(name, commit, field)


def settings_directory(source: str, field: str = "model.source") -> Path:
    """The directory of a model, of which a name on the hub need only have the configuration and the tokenizer.

    Raises:
        UserError: the name cannot be fetched.
    """
    if not is_hub_name(source):
        return Path(source)
    name, _, revision = source.partition("@")
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(_fetch, name, revision or None, list(TRAVELLING))
        while (outcome := _outcome(fetching)) is None:
            pass
    if outcome[1] is not None:
        raise _refusal(field, source, outcome[1])
    return fetching.result()


def _refusal(field: str, source: str, problem: str) -> UserError:
    absent = "no directory of that name (in a recipe, seen from its folder; on the command line, from the current one)"
    return UserError(f"{field}: expected a directory or a model of the hub, got {source!r}: {absent}; {problem}")


def has_weights(directory: Path) -> bool:
    """Whether all files of weights are there; of a model on the hub they may not have been fetched yet."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return (directory / "model.safetensors").is_file()
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((directory / name).is_file() for name in names)


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _outcome(fetching: Future[Path]) -> tuple[str, str | None] | None:
    """(commit, what went wrong); None while it goes on."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    advice = "without access to the hub, pass the path of a directory that holds the model"
    if not wait([fetching], timeout=_BEAT_SECONDS).done:
        return None
    try:
        return fetching.result().name, None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines() or [""]
        return "", f"{type(error).__name__}: {first[0]}; {advice}"


def _cached(name: str, commit: str, field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{field}: expected {name} in this machine's Hugging Face cache after rank 0 fetched it, got nothing; "
            "share the cache between machines (HF_HOME), or pass a directory that all of them see"
        ) from None
