"""The sentence means of reference_head against index_add_ and against a padded mean."""

import torch
from torch import Tensor

from aapa.kernels import reference_head
from benchmarks.harness import Candidate, Case, Options, main


def by_index_add(hidden_TD: Tensor, sentence_T: Tensor, length_S: Tensor) -> Tensor:
    sums_SD = hidden_TD.new_zeros(len(length_S), hidden_TD.shape[1], dtype=torch.float32)
    return sums_SD.index_add_(0, sentence_T, hidden_TD.float()) / length_S[:, None]


def by_padding(hidden_TD: Tensor, length_S: Tensor) -> Tensor:
    parts = hidden_TD.float().split(length_S.tolist())
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).sum(1) / length_S[:, None]


def case(tokens: int, width: int, options: Options) -> Case:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    cuts = torch.randperm(tokens - 1, generator=generator)[: tokens // 16] + 1
    cu_sents = torch.cat([torch.zeros(1, dtype=torch.long), cuts.sort().values, torch.tensor([tokens])]).int()
    length_S = cu_sents.diff().to(options.device)
    sentence_T = torch.arange(len(length_S), device=options.device).repeat_interleave(length_S)
    hidden = torch.randn(tokens, width, generator=generator).to(options.device, dtype)
    cu_sents = cu_sents.to(options.device)
    return Case(
        "reference_head",
        {"T": tokens, "D": width, "S": len(length_S)},
        str(dtype).removeprefix("torch."),
        [
            Candidate("reference", lambda: reference_head(hidden, None, None, cu_sents, backend="reference")),
            Candidate("index_add_", lambda: by_index_add(hidden, sentence_T, length_S)),
            Candidate("padded", lambda: by_padding(hidden, length_S)),
        ],
        moved_bytes=hidden.numel() * hidden.element_size(),
    )


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [case(128, 16, options)]
    return [case(16384, width, options) for width in (1024, 4096)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
