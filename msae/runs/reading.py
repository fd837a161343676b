"""The results of runs, as a report reads them: a folder may hold damaged files, or come from elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msae.errors import InputError, one_line

Run = dict[str, Any]
RESULT: dict[str, Any] = {
    **dict.fromkeys(("overrides", "history"), list),
    **dict.fromkeys(("job", "seed", "parameters", "latent_dim", "threads"), int),
    **dict.fromkeys(("data", "model", "checkpoint", "device"), str),
    **dict.fromkeys(("seconds", "samples_per_second"), (int, float)),
    **dict.fromkeys(("metrics", "versions"), dict),
}
"""What a report needs of metrics.json, and the types."""


def read_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The finished runs under `folder`, in the sweep's order, and why each of the others is not one of them.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    runs, missing = [], {}
    for run in sorted(path.parent for path in folder.glob("**/train.log")):
        name = str(run.relative_to(folder))
        if (run / "metrics.json").exists():
            try:
                runs.append(read_run(run))
            except InputError as error:
                missing[name] = str(error)
        elif any(run.glob("seed=*/train.log")):
            continue  # runs of several seeds as one lie in it
        elif (run / "error.txt").exists():
            lines = (run / "error.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            missing[name] = "failed: " + (lines[0] if lines else "error.txt is empty")
        else:
            missing[name] = "not finished"
    if not runs and not missing:
        raise InputError(f"{folder}: no runs in it; expected the folder of a sweep, or of several")
    return sorted(runs, key=lambda run: (run["folder"].parent, run["job"], run["seed"])), missing


def read_run(run: Path) -> Run:
    """The result of a run, with its `folder`, and as `data_options` the `data` section of its config.

    Raises:
        InputError: metrics.json or config.yaml is damaged, or the test error has no value.
    """
    try:
        result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8, or of JSON
        raise InputError(f"metrics.json is damaged: {one_line(error)}") from None
    for key, kind in RESULT.items():
        if not isinstance(result, dict) or not isinstance(result.get(key), kind):
            raise InputError(f"metrics.json is damaged: {key} is missing, or of another type")
    losses = [result["metrics"].get(f"test/{name}") for name in ("loss", "mse")]
    losses += [epoch.get("test/loss") if isinstance(epoch, dict) else None for epoch in result["history"][-1:]]
    if len(losses) < 3 or not all(isinstance(loss, (int, float)) and math.isfinite(loss) for loss in losses):
        raise InputError("its test error has no value")
    if result["checkpoint"] not in ("best.ckpt", "last.ckpt"):
        raise InputError(f"metrics.json is damaged: checkpoint={result['checkpoint'][:80]}")
    try:
        options = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))["data"]  # type: ignore[call-overload,index]
    except (OSError, KeyError, TypeError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"config.yaml is missing or damaged: {one_line(error)[:200]}") from None
    run_of: Run = result | {"folder": run, "data_options": options}
    return run_of
