"""A reward function in a process of its own, bounded in time and memory."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aapa.engine.errors import UserError

WORKER = Path(__file__).with_name("reward_worker.py")
# A module may import torch or transformers before its first call.
STARTUP_SECONDS = 300.0
EXTRAS = ("trainer_state", "log_metric", "log_extra")


@dataclass(frozen=True)
class Bounds:
    """What a process may use.

    Attributes:
        timeout: seconds of a call.
        memory_gb: address space; None does not limit it.
    """

    timeout: float
    memory_gb: float | None = None


class CallFailed(Exception):
    """A call that raised, took too long, or ended its process.

    Attributes:
        timed_out: whether it took too long.
    """

    def __init__(self, text: str, timed_out: bool = False) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class RewardProcess:
    """A persistent process with one loaded function; started anew after it was killed or has died.

    Args:
        path: `package.module:name` or `file.py:name`.
        field: of the recipe, for messages.

    Raises:
        UserError: the function cannot be loaded.
    """

    def __init__(self, path: str, field: str, bounds: Bounds) -> None:
        self.path, self.field, self.bounds = path, field, bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self.parameters: dict[str, Any] = {}
        self._start()

    def check_parameters(self, names: Sequence[str]) -> None:
        """Refuse a function that wants what there is not.

        Args:
            names: of the keywords that a call has.

        Raises:
            UserError: naming what it wants.
        """
        check_parameters(self.parameters, [*names, *EXTRAS], self.path, self.field)

    def begin(self, keywords: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Hand over a call; `finish` waits for it."""
        if self._process is None:
            self._start()
        known = self.parameters
        passed = {name: value for name, value in keywords.items() if known["anything"] or name in known["accepted"]}
        extras = [name for name in EXTRAS if known["anything"] or name in known["accepted"]]
        call = pickle.dumps({"keywords": passed, "state": dict(state), "extras": extras})
        self._calls += 1
        self._deadline = time.monotonic() + self.bounds.timeout
        with contextlib.suppress(OSError):  # a process that has died is found by `finish`
            self._connection.send((self._calls, call))

    def finish(self, count: int) -> tuple[list[float | str | None], list[tuple[str, float]]]:
        """The call's values, each a number, None, or a text that says why it is neither; and what it logged.

        Raises:
            CallFailed: it raised, took too long, or ended its process.
            UserError: it did not return `count` values.
        """
        try:
            answer = self._answer()
        except (EOFError, OSError):
            code = self.close()
            raise CallFailed(f"its process ended with {_ending(code)}") from None
        if "error" in answer:
            raise CallFailed(answer["error"])
        if "shape" in answer:
            raise UserError(f"{self.field}: expected a list of {count} numbers from {self.path}, got {answer['shape']}")
        values = answer["values"]
        if len(values) != count:
            raise UserError(
                f"{self.field}: expected a list of {count} numbers from {self.path}, one per completion, "
                f"got {len(values)}"
            )
        return values, [(name, value) for name, value in answer["logged"]]

    def _answer(self) -> dict[str, Any]:
        """The answer to the last call; one to an earlier call is passed over."""
        while self._connection.poll(max(0.0, self._deadline - time.monotonic())):
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
            if answer["call"] == self._calls:
                return answer
        self.close()
        raise CallFailed(f"took longer than {self.bounds.timeout:g} s", timed_out=True)

    def close(self) -> int | None:
        """Kill the process with everything it started; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # one that died has a code of its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._connection.close()
        return process.wait()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        try:
            # -P: the worker's own folder must not come before installed packages.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer, and a kill takes the function's children along
            )
        finally:
            theirs.close()
        limit = None if self.bounds.memory_gb is None else int(self.bounds.memory_gb * 1e9)
        start = {"function": self.path, "sys_path": sys.path, "memory_bytes": limit}
        try:
            self._connection.send_bytes(json.dumps(start).encode())
            ready = self._connection.poll(max(STARTUP_SECONDS, self.bounds.timeout))
            answer = json.loads(self._connection.recv_bytes()) if ready else {}
        except (EOFError, OSError):
            ending = _ending(self.close())
            raise UserError(f"{self.field}: expected a module that loads, got {self.path!r}: {ending}") from None
        if "parameters" not in answer:
            self.close()
            got = f"{self.path!r}, which takes longer than {STARTUP_SECONDS:g} s"
            raise UserError(f"{self.field}: {answer.get('error', f'expected a module that loads, got {got}')}")
        self.parameters = answer["parameters"]


def check_parameters(known: Mapping[str, Any], names: Sequence[str], path: str, field: str) -> None:
    """Refuse a function whose parameters are not among the keywords of a call.

    Raises:
        UserError: naming the function and what it wants.
    """
    if known["positional"]:
        raise UserError(f"{field}: expected f(prompts, completions, **columns), got {path} with positional parameters")
    missing = [name for name in known["required"] if name not in names]
    if missing:
        have = ", ".join(names)
        raise UserError(f"{field}: expected {path} to ask for no more than {have}, got {', '.join(missing)}")


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
