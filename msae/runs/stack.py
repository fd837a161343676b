"""Runs that differ only in their seed, trained as one: each optimizer step is made for all of them at once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from queue import Queue
from threading import Thread

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from msae.errors import one_line
from msae.models.recording import Recorder
from msae.models.steps import MultiStepModule
from msae.runs import signals

log = logging.getLogger(__name__)


class Run(Thread):
    """A run with its own Trainer, which does everything except the optimizer steps as if it were alone.

    Args:
        name: the name of the run.
        task: trains the run, whose model has this object as its `stack`.
        pictures: whether the run draws pictures.
    """

    def __init__(self, name: str, task: Callable[[Run], None], pictures: bool) -> None:
        super().__init__(name=name, daemon=True)
        self.task = task
        self.pictures = pictures
        self.model: MultiStepModule
        self.batches: list[Tensor] = []
        self.noise: list[Tensor | None] = []
        self.asks: Queue[bool] = Queue()
        """True when the run asks for steps, False when it ends."""
        self.answers: Queue[dict[str, Tensor] | BaseException | None] = Queue()
        self.seconds = 0.0
        """The run's share of the time of its last steps."""
        self.waited = 0.0
        """The time of other runs: their turns, and their shares of common steps."""
        self.asked = ""

    def run(self) -> None:
        """Do the task."""
        try:
            with contextlib.suppress(SystemExit):  # an interruption, which the stack reports
                self.task(self)
        finally:
            self.asks.put(False)

    def make_steps(
        self, model: MultiStepModule, batches: list[Tensor], noise: list[Tensor | None]
    ) -> dict[str, Tensor]:
        """Let the stack make the steps, as `MultiStepModule.make_steps` would."""
        self.model, self.batches, self.noise = model, batches, noise
        devices = [model.device] if model.device.type == "cuda" else []
        started = time.perf_counter()
        with torch.random.fork_rng(devices):  # all runs share one generator
            self.asks.put(True)
            answer = self.answers.get()
        self.waited += time.perf_counter() - started - self.seconds
        if isinstance(answer, BaseException):
            raise answer
        return model.make_steps(batches, noise) if answer is None else answer


class Stack:
    """Runs that take turns: one runs until it asks for steps, then the next.

    When all have asked, those that are furthest behind make their steps together. If the model cannot be stacked, the
    log says why, and each run makes its own steps in its turn.

    Args:
        tasks: the tasks of the runs, by name.
        seconds: the time after which all runs save within their epoch.
    """

    def __init__(self, tasks: dict[str, Callable[[Run], None]], seconds: float) -> None:
        self.seconds = seconds
        self._saved = time.monotonic()
        self.runs = [Run(name, task, pictures=not number) for number, (name, task) in enumerate(tasks.items())]
        self._asking: list[Run] = []
        self._apart: bool | None = None
        self._stacked: Stacked | None = None
        self._interrupted = False

    def run(self) -> None:
        """Do all tasks.

        Raises:
            KeyboardInterrupt: after an interruption, when each run has saved at its next step and ended.
        """
        signals.defer()
        for run in self.runs:
            run.start()
            self._turn(run)
        while self._asking:
            behind = min(run.model.global_step for run in self._asking)
            group = [run for run in self._asking if run.model.global_step == behind]
            self._asking = [run for run in self._asking if run not in group]
            asked = self._asked()
            for run, answer in zip(group, self._answers(group), strict=True):
                run.asked = asked
                run.answers.put(SystemExit(signals.code()) if self._interrupted else answer)
                self._turn(run)
            self._interrupted |= asked == "stop"  # the runs that are ahead have saved, and wait
        if self._interrupted or signals.received():
            raise KeyboardInterrupt
        signals.release()

    def _asked(self) -> str:
        """What all runs have to do after their next steps, so that they resume at the same step."""
        if signals.received():
            return "stop"
        if time.monotonic() - self._saved < self.seconds:
            return ""
        self._saved = time.monotonic()
        return "save"

    def _turn(self, run: Run) -> None:
        """Wait until a run asks or ends."""
        while True:
            try:
                if run.asks.get():
                    self._asking.append(run)
            except KeyboardInterrupt:
                self._interrupted = True
            else:
                return

    def _answers(self, group: list[Run]) -> Sequence[dict[str, Tensor] | BaseException | None]:
        """The answer to each run: the loss terms of its steps; None if it makes the steps itself; or an error."""
        alone = [None] * len(group)
        try:
            if self._apart is None:
                reason = refused(group)
                self._apart = reason is not None
                if reason:
                    log.warning("%s cannot be stacked, so runs take turns: %s", type(group[0].model).__name__, reason)
            if self._apart:
                return alone
            started = time.perf_counter()
            models = [run.model for run in group]
            if self._stacked is None or self._stacked.models != models:
                self._stacked = Stacked(models)
            answers = self._stacked.make_steps([run.batches for run in group], [run.noise for run in group])
        except KeyboardInterrupt:
            self._interrupted = True
            return alone
        except Exception as error:  # noqa: BLE001  (each run raises it)
            return [error] * len(group)
        if group[0].model.device.type == "cuda":
            torch.cuda.synchronize(group[0].model.device)  # once a call: else the first to read a loss waits for all
        for run in group:
            run.seconds = (time.perf_counter() - started) / len(group)
        return answers


def refused(runs: Sequence[Run]) -> str | None:
    """The reason why the steps of runs cannot be made together, or None."""
    for run in runs:
        if run.model.compiles:
            return "its steps are compiled, one run at a time"
        owner = run.model.optimizers(False)
        if type(owner) is not torch.optim.Adam or len(owner.param_groups) != 1:
            return f"its optimizer is not Adam with one group of parameters, but {type(owner).__name__}"
        if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in run.model.trainer.lr_scheduler_configs):
            return "its learning rate depends on its loss"
    try:
        stacked = Stacked([run.model for run in runs])
        versions = [buffer._version for buffer in stacked.buffers.values()]  # noqa: SLF001  (autograd's own count)
        [weight] = stacked.models[0].penalty_weights(1)
        x = torch.stack([run.batches[0] for run in runs])
        loss, _ = stacked.losses(x, joined([run.noise[0] for run in runs]), weight)
        torch.autograd.grad(loss.sum(), [*stacked.params.values()], allow_unused=True)
    except Exception as error:  # noqa: BLE001  (each run raises an error of the model itself again)
        return one_line(error)[:200]
    changed = [buffer._version for buffer in stacked.buffers.values()] != versions  # noqa: SLF001
    return "its buffers change in training" if changed else None


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The noise of all copies, `(copies, ...)`; None where they have none."""
    found = [part for part in parts if part is not None]
    return torch.stack(found) if found else None


class Stacked:
    """The stacked parameters of copies of a model, and one Adam for all.

    From the first steps on, the copies' parameters and the state of their optimizers are parts of the stacked ones.
    What replaces them in between, such as a callback that loads a state of the optimizer, has no effect on the steps.

    Args:
        models: models in their `training_step`, all at the same step of the same schedule.
    """

    def __init__(self, models: Sequence[MultiStepModule]) -> None:
        self.models = list(models)
        self.owners = [owner for model in models if isinstance(owner := model.optimizers(False), torch.optim.Optimizer)]
        for owner in self.owners:
            owner.zero_grad()
            owner.step()  # without gradients: a schedule expects a step before its own
        objectives = [Objective(model) for model in models]
        self.objective = objectives[0]
        self.params, self.buffers = torch.func.stack_module_state(objectives)
        self.optimizer = torch.optim.Adam(self.params.values(), **self.owners[0].defaults)
        for i, stacked in enumerate(self.params.values()):
            states = [owner.state.get(owner.param_groups[0]["params"][i], {}) for owner in self.owners]
            if all(states):
                self.optimizer.state[stacked] = {
                    key: value.clone() if key == "step" else torch.stack([state[key] for state in states])
                    for key, value in states[0].items()
                }
        self.recorder = Recorder(self.step, self.optimizer)
        self._shared = False

    def losses(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each copy on its batch, `(copies,)`, and the terms to log, each `(copies,)`."""

        def of_one(
            params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, drawn: Tensor | None
        ) -> tuple[Tensor, dict[str, Tensor]]:
            found: tuple[Tensor, dict[str, Tensor]] = torch.func.functional_call(
                self.objective, (params, buffers), (x, drawn, weight)
            )
            return found

        with self.models[0].trainer.precision_plugin.forward_context():
            in_dims = (0, 0, 0, None if noise is None else 0)
            mapped: tuple[Tensor, dict[str, Tensor]] = torch.vmap(of_one, in_dims)(self.params, self.buffers, x, noise)
        return mapped

    def make_steps(
        self, batches: Sequence[list[Tensor]], noise: Sequence[list[Tensor | None]]
    ) -> list[dict[str, Float[Tensor, " steps"]]]:
        """Make an optimizer step of each copy on each of its batches; return the terms to log, copy by copy."""
        found = []
        for number, weight in enumerate(self.models[0].penalty_weights(len(batches[0]))):
            self.optimizer.param_groups[0]["lr"] = self.owners[0].param_groups[0]["lr"]
            x = torch.stack([of[number] for of in batches])
            names, terms = self.recorder(x, joined([of[number] for of in noise]), weight)
            found.append(terms)
            for model in self.models:
                model.count_step()
        if not self._shared:
            self.share()
        values = torch.stack(found, dim=1).unbind(2)
        return [dict(zip(names, of_one, strict=True)) for of_one in values]

    def step(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> dict[str, Tensor]:
        """Make one step of each copy, on batches `(copies, batch, channels, length)`."""
        self.optimizer.zero_grad()
        loss, terms = self.losses(x, noise, weight)
        loss.sum().backward()
        self.clip()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def clip(self) -> None:
        """Clip each copy's gradient to the greatest norm."""
        greatest = self.models[0].gradient_clip_val
        if greatest is not None:
            gradients = [p.grad for p in self.params.values() if p.grad is not None]
            norm = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients]).norm(dim=0)
            factor = (greatest / (norm + 1e-6)).clamp(max=1)
            for gradient in gradients:
                gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))

    @torch.no_grad()
    def share(self) -> None:
        """Make the copies' parameters and Adam's state parts of the stacked ones, so that each copy can be saved."""
        self._shared = True
        for k, owner in enumerate(self.owners):
            for parameter, stacked in zip(owner.param_groups[0]["params"], self.params.values(), strict=True):
                parameter.data = stacked.detach()[k]
                if state := self.optimizer.state.get(stacked):
                    owner.state[parameter] = {key: value if key == "step" else value[k] for key, value in state.items()}


class Objective(nn.Module):
    """A model's `objective` as a `forward`, which `functional_call` needs."""

    def __init__(self, model: MultiStepModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of `MultiStepModule.objective`."""
        return self.model.objective(x, noise, weight)
