"""What `python -m msae.detect` compares with: normal windows of the training split, kept beside the checkpoint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from msae import read, write
from msae.errors import InputError
from msae.runs.found import data_set
from msae.runs.mistakes import explain

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from jaxtyping import Float
    from torch import Tensor

    from msae.data.rows import Table
    from msae.data.windows import Views
    from msae.models.reconstructor import Reconstructor
    from msae.uses.events import Limits
    from msae.uses.reference import Reference
    from msae.uses.rules import Rules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Normal:
    """What was learned of normal series.

    Attributes:
        scores: normal windows, and how far training windows are from them.
        rules: the rules that their values keep.
        steps: the number of their time steps, of training and of validation.
        files: the file of each series of the bank, whose steps are then its rows on the grid; empty for a data set
            without files.
        places: for each scale, the row in the file where each window of the bank begins, and its time, if there is one.
        suspects: texts about what may be a failure in them.
    """

    scores: Reference
    rules: Rules
    steps: int
    files: list[str]
    places: dict[str, list[tuple[int, str]]]
    suspects: list[str]

    @property
    def totals(self) -> tuple[Float[Tensor, " n"], int]:
        """Their scores, which are spread evenly, and the number of steps from one of them to the next."""
        totals = self.scores.totals
        return totals, max(1, round(self.steps / len(totals)))

    def place(self, number: int, scale: str) -> tuple[str, int, str]:
        """The file of a window of the bank, its first row at a scale, and the time of this row, empty if it has none.

        Of a data set without files, the index of its sample.
        """
        series = int(self.scores.bank.series[number])
        return (self.files[series], *self.places[scale][number]) if self.files else ("", series, "")

    def own(self, path: Path) -> int | None:
        """The number of a file among those of the bank, whose rows are then no neighbours of their own; or None."""
        found = [number for number, file in enumerate(self.files) if Path(file).resolve() == path.resolve()]
        return found[0] if found else None

    def told(self, limits: Limits) -> str:
        """How many events they would have had themselves."""
        from msae.uses import events

        totals, every = self.totals
        n = events.count(totals, replace(limits, gap=limits.gap // every))
        return f"\n  in the {self.steps} normal steps it gives {write.counted(n)}"

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a file."""
        bank = vars(self.scores.bank) | {
            "shelves": {name: vars(each) for name, each in self.scores.bank.shelves.items()}
        }
        scores = vars(self.scores) | {"bank": bank}
        return vars(self) | {"scores": scores, "rules": vars(self.rules)}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Normal:
        """What `state` gave."""
        from msae.uses.bank import Bank, Shelf
        from msae.uses.reference import Reference
        from msae.uses.rules import Rules

        scores, bank = state["scores"], state["scores"]["bank"]
        shelves = {name: Shelf(**each) for name, each in bank["shelves"].items()}
        return cls(
            Reference(**scores | {"bank": Bank(**bank | {"shelves": shelves})}),
            Rules(**state["rules"]),
            state["steps"],
            state["files"],
            state["places"],
            state["suspects"],
        )


def find(cfg: DictConfig, model: Reconstructor) -> Normal | None:
    """What is normal in the training split of the run, or in files; None without a reference.

    A line of the log tells what may be a failure there. What is normal in the training split is kept beside the
    checkpoint, as `best.bank` beside `best.ckpt`, or as `best.causal.bank`. Later calls then need no training data.
    """
    if cfg.reference is None:
        return None
    normal = of_files(cfg, model) if cfg.reference != "training" else of_training(cfg, model)
    for text in normal.suspects:
        log.warning("%s; if it is a failure, it hides later ones: leave it out, and train again", text)
    return normal


def of_files(cfg: DictConfig, model: Reconstructor) -> Normal:
    """What is normal in the files of `cfg.reference`."""
    files = OmegaConf.merge(cfg, {"data": {"path": reference_path(cfg)}})
    assert isinstance(files, DictConfig)
    stretches = list(read.stretches(files, model))
    places = [(stretch.table, stretch.first) for stretch in stretches]
    return learned(cfg, model, [stretch.x for stretch in stretches], [], places)


def of_training(cfg: DictConfig, model: Reconstructor) -> Normal:
    """What is normal in the training split; see `find`."""
    from msae.models import archive, checkpoint
    from msae.whole import write_bytes

    ckpt = checkpoint.find(cfg.ckpt)
    file = ckpt.with_suffix(".causal.bank" if cfg.causal else ".bank")
    facts = {"checkpoint": hashlib.sha256(ckpt.read_bytes()).hexdigest()}
    facts |= {key: cfg[key] for key in ("stride", "causal", "bank_size")}
    if file.is_file():
        try:
            kept = archive.read(file)
            if kept["facts"] == facts:
                return Normal.of_state(kept["normal"])
        except (InputError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not readable, so that it is learned again (%s)", file, type(error).__name__)
    normal = learned(cfg, model, *training(cfg, model))
    try:
        write_bytes(file, archive.packed({"facts": facts, "normal": normal.state()}))
    except InputError as error:
        log.warning("%s; the next call has to learn the normal windows again", error)
    return normal


def learned(
    cfg: DictConfig, model: Reconstructor, data: Series, fresh: Series, places: list[tuple[Table, int]]
) -> Normal:
    """What is normal in data, and in others that the model was not trained on; see `msae.uses.reference.learn`."""
    import torch

    from msae.uses import anomaly, ranges, reference, rules, suspects

    both = reference.Joined((data, fresh))
    total, more = (
        sum(x.numel() // model.channels for x in some) if isinstance(some, list) else len(some.x) * model.length
        for some in (data, fresh)
    )
    with write.Progress("steps") as progress:
        progress.begin("training scores", total + more)
        scores = reference.learn(model, data, cfg.stride, progress.update, cfg.bank_size, cfg.causal, fresh)
    said = []
    for one in suspects.suspects(scores, both, model.length, ranges.names(model)):
        at = f"training sample {one.series}"
        if places:
            table, first = places[one.series]
            [(row, stamp)] = where(table, torch.tensor([first + one.step]))
            at = ", ".join(filter(None, (f"{table.path}, row {row}", stamp)))
        said.append(f"{at}: {one.why}")
    files = list(dict.fromkeys(str(table.path) for table, _ in places))
    rows: dict[str, list[tuple[int, str]]] = {}
    if files:  # from series and steps to files and rows
        bank = scores.bank
        numbers, firsts = torch.tensor([(files.index(str(table.path)), first) for table, first in places]).unbind(1)
        starts = firsts[bank.series] + bank.starts
        for name, length in anomaly.Scorer(model).lengths.items():
            some = [
                where(table, starts[bank.series == i] + model.length - length) for i, (table, _) in enumerate(places)
            ]
            rows[name] = list(chain.from_iterable(some))  # the bank is in the order of the series
        scores = replace(scores, bank=replace(bank, series=numbers[bank.series], starts=starts))
    return Normal(scores, rules.learn(both, model.channels), total + more, files, rows, said)


def where(table: Table, rows: Tensor) -> list[tuple[int, str]]:
    """The rows of the file that are in rows of a table, and their times as texts, empty without times."""
    numbers = rows.numpy()
    times = [""] * len(numbers)
    if table.times is not None:
        times = list(map(str, write.column(table.stamps(table.times[numbers]), text=True).to_pylist()))
    return list(zip((numbers if table.order is None else table.order[numbers]).tolist(), times, strict=True))


def reference_path(cfg: DictConfig) -> Any:
    """`cfg.reference` as `data.path` takes it."""
    return OmegaConf.to_container(cfg.reference) if OmegaConf.is_config(cfg.reference) else cfg.reference


def training(cfg: DictConfig, model: Reconstructor) -> tuple[Series, Series, list[tuple[Table, int]]]:
    """The series, or windows, of the training and the validation split of the checkpoint's run.

    And the file and first row of each series, those of the training split first.

    Raises:
        InputError: the checkpoint does not say what they were, or they cannot be read.
    """
    from msae.data.windows import Views

    hint = "type reference=PATH to compare with other files, or reference=null and threshold=NUMBER to do without"
    options = model.data_options
    if options is None:
        raise InputError(f"reference=training: {cfg.ckpt} does not say how its data were read; {hint}")
    try:
        data = data_set("its data options", options, "type data._target_={}", [cfg.data._target_])
    except (InputError, HydraException, OSError) as error:
        reason = explain(error, "train").rstrip(".")
        raise InputError(f"reference=training: cannot read the data of {cfg.ckpt}: {reason}; {hint}") from None
    parts: list[Series] = []
    places: list[tuple[Table, int]] = []
    for x in (data.train.x, data.val.x):
        if not isinstance(x, Views):
            parts.append([x] if len(x) else [])
        elif x.blocks[0].ndim == 3:
            parts.append(Cut(x))
        else:
            parts.append([x.blocks[number][start:stop].T for number, start, stop in x.spans])
            places += [(data.tables[number], start) for number, start, _ in x.spans]
    return parts[0], parts[1], places


@dataclass(frozen=True)
class Cut:
    """Windows of files that already contain windows; each iteration reads them again in batches."""

    x: Views

    def __iter__(self) -> Iterator[Tensor]:
        return (self.x[first : first + read.BATCH] for first in range(0, len(self.x), read.BATCH))


Series = list["Tensor"] | Cut
