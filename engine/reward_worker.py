"""The process a reward function runs in. Started as a script: it knows the standard library only."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import pickle
import signal
import sys
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, cast

_PR_SET_PDEATHSIG = 1
_WORKER = os.getpid()
# Of float32, in which TRL keeps rewards.
LARGEST = 3.4028234663852886e38


def main() -> None:
    """Load the function that the first message names, then answer calls until the other side is gone."""
    connection = Connection(int(sys.argv[1]))
    if sys.platform == "linux":
        # A function that hangs would outlive a trainer that is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    start: dict[str, Any] = json.loads(connection.recv_bytes())
    sys.path[:] = start["sys_path"]
    if start["memory_bytes"] is not None:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = start["memory_bytes"] if hard == resource.RLIM_INFINITY else min(start["memory_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        function = load(start["function"])
        answer: dict[str, Any] = {"parameters": parameters(function)}
    except BaseException as error:
        _send(connection, {"error": reason(error, start["function"])})
        return
    _send(connection, answer)
    while True:
        try:
            number, pickled = connection.recv()
        except EOFError:
            return
        try:
            call = pickle.loads(pickled)
        except Exception as error:
            # Columns may be of the user's own classes, and unpickling them is their code.
            answer = {"error": f"cannot be read: {describe(error)}"}
        else:
            answer = answer_call(function, call)
        _send(connection, {"call": number, **answer})


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    if os.getpid() != _WORKER:
        os._exit(0)  # a child that the function forked and let return: there is one answer, the parent's
    connection.send_bytes(json.dumps(answer).encode("utf-8", errors="replace"))


def load(path: str) -> Callable[..., Any]:
    """The callable at `package.module:name` or `file.py:name`.

    Raises:
        ImportError, AttributeError, TypeError: there is none; anything that the module raises.
    """
    module_name, _, name = path.rpartition(":")
    if module_name.endswith(".py"):
        folder, file = os.path.split(module_name)
        if folder not in sys.path:
            sys.path.append(folder)
        spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), module_name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    found = getattr(module, name)
    if not callable(found):
        raise TypeError(f"expected a callable, got {type(found).__name__} under {path!r}")
    return cast("Callable[..., Any]", found)


def reason(error: BaseException, path: str) -> str:
    """What is wrong with a function that cannot be loaded."""
    if isinstance(error, TypeError) and str(error).startswith("expected a callable"):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"expected a module without errors, got {path!r} ({error.msg}, line {error.lineno} of {error.filename})"
    if isinstance(error, ImportError | AttributeError | FileNotFoundError):
        return f"expected something importable, got {path!r} ({error})"
    return f"expected a module without errors, got {path!r} ({describe(error)})"


def describe(error: BaseException) -> str:
    """The error in a line, and the line of the user's code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = __file__ if trace is None else trace.tb_frame.f_code.co_filename
    where = "" if trace is None or file == __file__ else f" at {os.path.basename(file)}:{trace.tb_lineno}"
    try:
        text = (str(error).splitlines() or [""])[0][:200]
    except BaseException as second:  # the error's own code
        text = f"its text raises {type(second).__name__}"
    return printable(f"{type(error).__name__}{': ' if text else ''}{text}{where}")


def printable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which neither a terminal nor a log takes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Names it takes by keyword, those without a default among them, and whether it takes any."""
    kinds = inspect.Parameter
    accepted, required, positional, anything = [], [], [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is kinds.VAR_KEYWORD:
            anything = True
        elif parameter.kind is kinds.POSITIONAL_ONLY:
            positional.append(parameter.name)
        elif parameter.kind is not kinds.VAR_POSITIONAL:
            accepted.append(parameter.name)
            if parameter.default is kinds.empty:
                required.append(parameter.name)
    return {"accepted": accepted, "required": required, "positional": positional, "anything": anything}


def answer_call(function: Callable[..., Any], call: dict[str, Any]) -> dict[str, Any]:
    """`values` (None, a number, or a text that says what is wrong), or `error`, or `shape`; and `logged`."""
    logged: list[tuple[str, float]] = []
    keywords = dict(call["keywords"])
    given = {
        "trainer_state": types.SimpleNamespace(**call["state"]),
        "log_metric": lambda name, value: logged.append((printable(str(name)), float(value))),
        "log_extra": lambda column, values: None,
    }
    keywords |= {name: value for name, value in given.items() if name in call["extras"]}
    try:
        result = function(**keywords)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        if isinstance(result, str | bytes | dict | set | frozenset) or not hasattr(result, "__iter__"):
            return {"shape": type(result).__name__}
        if getattr(result, "ndim", 1) == 0:
            return {"shape": f"{type(result).__name__} of 0 dimensions"}
        # A generator is the user's code, too, and so is the conversion of what is in it.
        values = [number(value) for value in result]
    except BaseException as error:
        return {"error": describe(error)}
    return {"values": values, "logged": [(name, value) for name, value in logged if math.isfinite(value)]}


async def _awaited(value: Any) -> Any:
    return await value


def number(value: Any) -> float | str | None:
    """A float, None as it is, or a text that says why it is neither."""
    if value is None:
        return None
    # NumPy's texts and complex numbers have a __float__, which parses the one and cuts the other.
    convertible = hasattr(value, "__float__") and not isinstance(value, str | bytes)
    if isinstance(value, numbers.Complex):
        convertible = isinstance(value, numbers.Real)
    try:
        converted = float(value) if convertible else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        converted = None
    if converted is None:
        return f"expected a number or None, got {printable(' '.join(repr(value).split())):.80}"
    return magnitude_problem(converted) or converted


def magnitude_problem(value: float) -> str:
    """What is wrong with a number that is not finite, or would not be in float32; nothing if it is a reward."""
    if not math.isfinite(value):
        return f"expected a finite number or None, got {value}"
    return "" if abs(value) <= LARGEST else f"expected a number within float32, at most {LARGEST:.2g}, got {value:g}"


if __name__ == "__main__":
    main()
