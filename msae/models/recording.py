"""Optimizer steps as one CUDA graph.

A step of a model as small as the ones here is about a hundred kernels of a few microseconds each. The host launches
them more slowly than a GPU runs them. Recorded once as a CUDA graph, all kernels of a step are launched by one call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from msae.errors import one_line

log = logging.getLogger(__name__)
FIRST = 3
"""The number of steps before the recording, in which libraries allocate what they keep."""
Step = Callable[[Tensor, Tensor | None, float | Tensor], dict[str, Tensor]]


class Recorder:
    """Makes optimizer steps; on a GPU it records one, and from then on replays it with other inputs.

    Steps of another shape than the first one, such as on the last batch of an epoch, are made kernel by kernel. So are
    all steps of a model that cannot be recorded, as it waits for the host (`.item()`); the log says so.

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
        self._graph: torch.cuda.CUDAGraph | None = None
        self._names: list[str] = []
        self._terms = torch.empty(0)

    def __call__(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> tuple[list[str], Tensor]:
        """Make a step; return the names of the terms, and the terms `(terms, ...)`."""
        if self._record and x.is_cuda and self._made == FIRST:
            self._try(x, noise, weight)
        if self._graph is None or self._inputs is None or self._inputs[0].shape != x.shape:
            self._made += self._made < FIRST
            terms = self.step(x, noise, weight)
            return list(terms), torch.stack(list(terms.values()))
        for kept, given in zip(self._inputs, (x, noise, weight), strict=True):
            if isinstance(kept, Tensor) and isinstance(given, Tensor):
                kept.copy_(given)
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._names, self._terms.clone()

    def _try(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> None:
        """Record a step, or say why it cannot be recorded."""
        self._made += 1
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        noise = None if noise is None else noise.clone()
        self._inputs = x.clone(), noise, weight.clone() if isinstance(weight, Tensor) else weight
        self._rates = [torch.full((), rate, device=x.device) for rate in rates]
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
            for group, rate in zip(groups, rates, strict=True):
                group.update(lr=rate, capturable=False)
