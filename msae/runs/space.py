"""The values that a search tries: those of the command line, as distributions of Optuna."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError, needs
from msae.runs.folder import UNNAMED
from msae.runs.overrides import key_of
from msae.runs.processes import check_sweep
from msae.runs.trainer import check as check_run
from msae.runs.trainer import quiet

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from optuna.distributions import BaseDistribution

FREE = ("n_trials", "out", "resume", "threads", "data.root", "trainer.accelerator", "trainer.enable_progress_bar")
"""Keys that may change when a study is resumed."""


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Overrides that set keys to the values of a trial."""
    return [f"{key}={value}" for key, value in values.items()]


def to_try(swept: Sequence[Override]) -> tuple[list[str], list[Override]]:
    """The overrides of every trial, and those with values to try, from the experiment's `hydra.sweeper.params` as well.

    Raises:
        InputError: no values to try, or a key that cannot be searched.
    """
    own = {"n_trials", "out", "resume"} | {override.key_or_group for override in swept}
    given = [text for text in HydraConfig.get().overrides.task if key_of(text) not in own]
    known = own | {key_of(text) for text in given}
    params = HydraConfig.get().sweeper.get("params") or {}
    texts = [text for text in overrides(params) if key_of(text) not in known]
    found = [*OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(texts), *swept]
    tried = [override for override in found if override.is_sweep_override()]
    for override in tried:
        if override.key_or_group in ("seed", *FREE, *UNNAMED):
            raise InputError(f"{override.input_line}: cannot be searched; expected one value")
    if not tried:
        raise InputError("nothing to search; expected values to try, such as 'model.lr=tag(log,interval(1e-4,1e-2))'")
    return [*given, *(str(override.input_line) for override in found if override not in tried)], tried


def spaces(given: Sequence[str], tried: Sequence[Override]) -> dict[str, BaseDistribution]:
    """The values to try as distributions of Optuna, by key; InputError if trials could not be run or compared."""
    options = {o.get_key_element(): list(o.sweep_string_iterator()) for o in tried if o.is_choice_sweep()}
    first = {key: texts[0] for key, texts in options.items()}
    chosen = composed([*given, *overrides(first)])
    found = {override.get_key_element(): distribution(override, chosen) for override in tried}
    one = {key: getattr(what, "low", None) for key, what in found.items()} | first
    for key, texts in options.items():
        for text in texts[1:]:
            composed([*given, *overrides(one | {key: text})])
    check(composed([*given, *overrides(one)]))
    return found


def distribution(override: Override, chosen: DictConfig) -> BaseDistribution:
    """The values to try for a key, as a distribution of Optuna.

    Args:
        override: the override with the values.
        chosen: the config of a run; an interval with whole bounds gives whole numbers if the key has one there.

    Raises:
        InputError: bounds in the wrong order, or a tag other than log.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError:
        raise needs("msae.search", "optuna", "search") from None
    value: Any = override.value()
    tags: set[str] = getattr(value, "tags", set())
    if tags - ({"log"} if isinstance(value, IntervalSweep) else set()):
        raise InputError(f"{override.input_line}: tag {', '.join(tags)}; expected none, or log of an interval")
    if isinstance(value, IntervalSweep) and not math.isfinite(float(value.end or 0) - float(value.start or 0)):
        raise InputError(f"{override.input_line}: expected finite bounds")
    try:
        if isinstance(value, IntervalSweep):
            low, high = float(value.start or 0), float(value.end or 0)
            whole = isinstance(OmegaConf.select(chosen, override.key_or_group), int) and low % 1 == high % 1 == 0
            if whole or isinstance(value.start, int):
                return IntDistribution(int(low), int(high), log=bool(tags))
            return FloatDistribution(low, high, log=bool(tags))
        if isinstance(value, RangeSweep):
            values = list(value.range())
            if isinstance(value.step, int) and isinstance(values[0], int):
                return IntDistribution(values[0], int(values[-1]), step=value.step)
            return FloatDistribution(values[0], values[-1], step=value.step)
    except (ValueError, IndexError):
        raise InputError(f"{override.input_line}: expected the lower bound first, and above 0 for log") from None
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def check(cfg: DictConfig) -> None:
    """Raise InputError for a config whose trials could not be run or compared."""
    if OmegaConf.is_list(cfg.seed):
        raise InputError(f"seed={cfg.seed}: expected one seed for all trials; train the best with several")
    if launcher := next((o for o in HydraConfig.get().overrides.hydra if re.match(r"hydra[./]launcher", o)), None):
        raise InputError(f"{launcher}: a search has none; start the same command several times to run trials at once")
    check_sweep(cfg)
    check_run(cfg)
    quiet()
    from msae.runs.model import data_of, model_of

    data = data_of(cfg)
    if not len(data.val):
        raise InputError("data: no validation split, on which trials are compared; expected data.val_size above 0")
    model_of(cfg, data)  # checks the lower bounds


def composed(texts: Sequence[str]) -> DictConfig:
    """The config that `conf/train.yaml` composes for overrides, with Hydra's own part."""
    return GlobalHydra.instance().config_loader().load_configuration("train", list(texts), RunMode.MULTIRUN)
