"""Adam on the policy's shard: Megatron's optimizer, with its state readable parameter by parameter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from torch import Tensor

from aapa.engine.errors import TrainingFault
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
# The float32 weights behind a 16-bit policy, kept beside its moments.
MAIN = "main"


@dataclass(frozen=True)
class AdamSettings:
    """Hyperparameters of a stage's optimizer; the learning rate comes with every step."""

    weight_decay: float = 0.0
    clip_grad: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8


class Adam:
    """AdamW with global-norm clipping over all ranks; norms and biases are not decayed.

    The optimizer inside is TransformerEngine's or Apex's fused one where Megatron finds it, else torch's. A policy of
    16 bits has float32 main weights, which are what is updated. With the distributed optimizer each of the ranks that
    hold the same weights has a part of the states.

    Attributes:
        names: what is kept for each parameter beside its weight.
    """

    def __init__(
        self,
        models: list[DistributedDataParallel],
        settings: AdamSettings,
        dtype: torch.dtype,
        parallel: Parallel,
        train: TrainSettings,
    ) -> None:
        config = OptimizerConfig(
            optimizer="adam",
            lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            params_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            use_distributed_optimizer=train.distributed_optimizer,
            overlap_param_gather=train.distributed_optimizer and train.overlap,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells at length that Apex and TransformerEngine are absent
            overrides = get_standard_config_overrides(config)
            self._optimizer = get_megatron_optimizer(config, models, config_overrides=overrides)
        (self._inner,) = getattr(self._optimizer, "chained_optimizers", [self._optimizer])
        self._distributed, self._group = train.distributed_optimizer, parallel.gradient_group
        for group in self._optimizer.param_groups:
            # Megatron applies this multiplier in its own learning-rate scheduler, which is not used here.
            group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
        self.names = (*MOMENTS, MAIN) if dtype == torch.bfloat16 else MOMENTS
        self.steps = 0
        self._make_state()

    def _make_state(self) -> None:
        """Create the moments now, since they are otherwise made at the first step, and a resume comes before it."""
        on_gpu = torch.cuda.is_available()
        for group in self._torch.param_groups:
            if self._own_torch and on_gpu:
                group["fused"], group["foreach"] = True, False
            for parameter in group["params"]:
                state = self._torch.state[parameter]
                if self._own_torch:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    @property
    def _torch(self) -> torch.optim.Optimizer:
        return self._inner.optimizer

    @property
    def _own_torch(self) -> bool:
        """Whether the steps are counted parameter by parameter, as torch does; fused optimizers count by group."""
        return isinstance(self._torch, torch.optim.AdamW)

    def step(self, learning_rate: float) -> float:
        """One update from the finished gradients; returns their global norm before clipping.

        Raises:
            TrainingFault: the norm is not finite; nothing was changed.
        """
        self._optimizer.prepare_grads()
        norm = float(self._optimizer.get_grad_norm())
        if not math.isfinite(norm):
            raise TrainingFault(f"gradient norm: expected a finite number, got {norm}; the policy was not updated")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        # prepare_grads let .grad point at main_grad; the next backward pass would accumulate into it twice.
        self._optimizer.zero_grad()
        self.steps += 1
        return norm

    def moment(self, parameter: Tensor, name: str) -> Tensor:
        """This rank's part of what is kept of a local parameter, to read or to fill in place: of the parameter's shape,
        flat with the distributed optimizer, empty where the rank has none."""
        owned = self._owned(parameter)
        if owned is None:
            return parameter.new_empty(0, dtype=torch.float32)
        main, _ = owned
        return main.data if name == MAIN else self._torch.state[main][name]

    def whole_moment(self, parameter: Tensor, name: str) -> Tensor:
        """The same of the whole local parameter; with the distributed optimizer a collective over its ranks."""
        if not self._distributed:
            return self.moment(parameter, name)
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        owned = self._owned(parameter)
        if owned is not None:
            whole[owned[1]] = self.moment(parameter, name)
        # Every element is owned by one rank, and what is added to it is 0.
        dist.all_reduce(whole, group=self._group)
        return whole.view(parameter.shape)

    def load_moment(self, parameter: Tensor, name: str, whole: Tensor) -> None:
        """Take this rank's part of what is kept of the whole local parameter."""
        owned = self._owned(parameter)
        if owned is not None:
            self.moment(parameter, name).copy_(whole.reshape(-1)[owned[1]] if self._distributed else whole)

    def _owned(self, parameter: Tensor) -> tuple[Tensor, slice] | None:
        """What this rank updates of a parameter: the tensor, and its place in the flat parameter."""
        if not self._distributed:
            return getattr(parameter, "main_param", parameter), slice(None)
        place = self._inner.model_param_group_index_map.get(parameter)
        if place is None:
            return None
        group, order = place
        bounds = self._inner._get_model_param_range_map(parameter)["param"]
        return self._torch.param_groups[group]["params"][order], slice(bounds.start, bounds.end)

    def reload(self) -> None:
        """Take over weights that were loaded into the model into the main weights."""
        self._inner.reload_model_params()

    def set_steps(self, steps: int) -> None:
        """Continue the bias correction after `steps` updates."""
        self.steps = steps
        for state in self._torch.state.values():
            if "step" in state:
                state["step"].fill_(steps)
        if not self._own_torch:
            for group in self._torch.param_groups:
                group["step"] = steps

    def tensors(self) -> Iterator[Tensor]:
        """All that waits between updates: moments, and main weights that are no views of the model's."""
        for group in self._torch.param_groups:
            for main in group["params"]:
                for name in MOMENTS:
                    yield self._torch.state[main][name]
                if MAIN in self.names:
                    yield main.data
