"""What GPUs have: makers' figures, from which estimates are made."""

from __future__ import annotations

from dataclasses import dataclass

from aapa.engine.errors import UserError
from aapa.engine.flops import PEAKS

# GPUs that NVLink joins to one machine: HGX and DGX boards of all four.
PER_NODE = 8


@dataclass(frozen=True)
class Gpu:
    """One GPU. Bandwidths are of one direction, in bytes per second.

    Attributes:
        memory: stated capacity. The driver reports about 6 % more, as a GB here is 1e9 bytes; that is what is left for
            the CUDA context, communication buffers and fragmentation.
        flops: dense bf16 peak.
        bandwidth: of its memory.
        link: to the other GPUs of its machine.
        network: to other machines, its share of the machine's adapters.
        host: to its host's memory.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float
    host: float


# Memory, bandwidth and NVLink: NVIDIA's data sheets "A100 80GB SXM" (2021), "H100 SXM" (2023), "H200 SXM" (2024) and
# "HGX B200" (2024; 1.44 TB over eight). NVLink is stated as the sum of both directions: 600, 900, 900, 1800 GB/s.
# Network: the DGX of each generation has an adapter for every GPU, of 200 Gb/s (A100) and 400 Gb/s (others).
# Host: PCIe of generation 4 (A100) and 5 (others), 16 lanes.
GPUS = {
    "a100-80gb": Gpu("A100-80GB", 80e9, PEAKS["A100"], 2.039e12, 300e9, 25e9, 32e9),
    "h100-80gb": Gpu("H100-80GB", 80e9, PEAKS["H100"], 3.35e12, 450e9, 50e9, 64e9),
    "h200": Gpu("H200", 141e9, PEAKS["H200"], 4.8e12, 450e9, 50e9, 64e9),
    "b200": Gpu("B200", 180e9, PEAKS["B200"], 8.0e12, 900e9, 50e9, 64e9),
}


def gpu(name: str) -> Gpu:
    """The GPU of a name; "a100" and "h100" are those with 80 GB.

    Raises:
        UserError: a name that the table does not have.
    """
    key = name.lower().replace("_", "-")
    found = GPUS.get(key) or GPUS.get(f"{key}-80gb")
    if found is None:
        raise UserError(f"--gpu: expected one of {', '.join(GPUS)}, got {name!r}")
    return found
