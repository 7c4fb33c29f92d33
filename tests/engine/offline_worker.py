"""The program in a process that may open no connection: offline_worker.py ATTEMPTS WORDS…

Every attempt is written to the file ATTEMPTS and refused; exits with the program's own code.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)


def deny(attempts: Path) -> None:
    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        with attempts.open("a") as file:
            file.write(f"{[argument for argument in arguments if not isinstance(argument, socket.socket)]}\n")
        raise OSError("this test denies connections")

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = refuse  # type: ignore[assignment]


if __name__ == "__main__":
    deny(Path(sys.argv[1]))
    from aapa.engine.cli import main

    sys.exit(main(sys.argv[2:]))
