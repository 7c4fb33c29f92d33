"""Tensors that wait in the host's memory while a phase of the step does not need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Offload:
    """Moves the storages of some tensors out and back, in place: views of them, and whoever holds them, stay valid.

    While they are out, the tensors must not be read. On the CPU their bytes move, too, which is how it is tested.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """`tensors` names what moves, when it moves."""
        self._tensors = tensors
        self._waiting: list[tuple[torch.UntypedStorage, Tensor]] = []

    def out(self) -> None:
        """Copy the contents to the host, pinned where there is a GPU, and free the storages."""
        if self._waiting:
            return
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in self._tensors()}
        for storage in storages.values():
            content = _bytes(storage)
            host = torch.empty(len(content), dtype=torch.uint8, pin_memory=content.is_cuda)
            host.copy_(content)
            storage.resize_(0)
            self._waiting.append((storage, host))

    def back(self) -> None:
        """Bring everything back; nothing to do where it is there."""
        while self._waiting:
            storage, host = self._waiting.pop()
            storage.resize_(len(host))
            _bytes(storage).copy_(host)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
