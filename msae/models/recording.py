"""Optimizer steps as one CUDA graph.

A step of a model as small as the ones here is about a hundred kernels of a few microseconds each. The host launches
them more slowly than a GPU runs them. Recorded once as a CUDA graph, all kernels of a step are launched by one call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msae.errors import one_line

log = logging.getLogger(__name__)
FIRST = 3
"""The number of steps before the recording, in which libraries allocate what they keep."""
GIVEN = ("lr", "params", "capturable")
"""What of a group of parameters a graph takes as it comes; all else is fixed in it."""
Step = Callable[[Tensor, Tensor | None, float | Tensor], dict[str, Tensor]]


class Recorder:
    """Makes optimizer steps; on a GPU it records one, and from then on replays it with other inputs.

    Steps that differ from the recorded one are made kernel by kernel: on a smaller batch, such as the last of an epoch,
    with another weight that is a number, or with other betas of Adam. So are all steps of a model that cannot be
    recorded, as it waits for the host (`.item()`); the log says so.

    Args:
        step: makes a step of a batch, the noise and the weight of the penalty, as `MultiStepModule.objective` takes
            them; returns the terms to log, each without its graph of gradients.
        optimizer: whose step it is. Its learning rate may change from step to step.
        record: whether the steps are to be recorded, if they are Adam's on a GPU.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, record: bool = True) -> None:
        self.step, self.optimizer = step, optimizer
        self._record = record and isinstance(optimizer, torch.optim.Adam)
        self._made = 0
        self._inputs: tuple[Tensor, Tensor | None, float | Tensor] | None = None
        self._rates: list[Tensor] = []
        self._fixed: list[Any] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._names: list[str] = []
        self._terms = torch.empty(0)

    def __reduce__(self) -> Any:
        """A copy records anew: a graph cannot be copied."""
        return Recorder, (self.step, self.optimizer, self._record)

    def __call__(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> tuple[list[str], Tensor]:
        """Make a step; return the names of the terms, and the terms `(terms, ...)`."""
        if self._record and x.is_cuda and self._made == FIRST:
            self._try(x, noise, weight)
        if self._graph is None or not self._same(x, noise, weight):
            self._made += self._made < FIRST
            terms = self.step(x, noise, weight)
            return list(terms), torch.stack(list(terms.values()))
        assert self._inputs is not None
        for kept, given in zip(self._inputs, (x, noise, weight), strict=True):
            if isinstance(kept, Tensor) and isinstance(given, Tensor):
                kept.copy_(given)
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._names, self._terms.clone()

    def _same(self, *given: Tensor | float | None) -> bool:
        """Whether a step is the recorded one, but for the values of its inputs and the learning rate."""
        assert self._inputs is not None
        for kept, new in zip(self._inputs, given, strict=True):
            if isinstance(kept, Tensor) != isinstance(new, Tensor):
                return False
            if isinstance(kept, Tensor) and isinstance(new, Tensor):
                if kept.shape != new.shape:
                    return False
            elif kept != new:
                return False
        return self._fixed == fixed(self.optimizer)

    def _try(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> None:
        """Record a step, or say why it cannot be recorded."""
        self._made += 1
        groups = self.optimizer.param_groups
        before = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        noise = None if noise is None else noise.clone()
        self._inputs = x.clone(), noise, weight.clone() if isinstance(weight, Tensor) else weight
        self._rates = [torch.full((), group["lr"], device=x.device) for group in groups]
        self._fixed = fixed(self.optimizer)
        graph = torch.cuda.CUDAGraph()
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group.update(lr=rate, capturable=True)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                terms = self.step(*self._inputs)
                self._terms = torch.stack(list(terms.values()))
            self._names, self._graph = list(terms), graph
        except Exception as error:  # noqa: BLE001  (what a model does may fail in many ways)
            log.warning("training steps are not recorded as a CUDA graph, and are slower: %s", one_line(error)[:200])
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)


def fixed(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What a graph of the optimizer's step holds as it was at the recording, for each group of parameters."""
    return [
        ([parameter.requires_grad for parameter in group["params"]], {k: v for k, v in group.items() if k not in GIVEN})
        for group in optimizer.param_groups
    ]
