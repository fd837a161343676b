"""Time stamps after the last one, continued as the calendar has them: months, quarters, business days, zones."""

from __future__ import annotations

import numpy as np
import pandas as pd

RECENT = 1000
"""The number of last time stamps that tell how they go on."""


def following(stamps: pd.DatetimeIndex, n: int) -> pd.DatetimeIndex:
    """The n time stamps that follow increasing ones, in their zone.

    Whole days, weeks and months are counted by the clock on the wall, so that the hour stays the same when clocks
    change; shorter steps are counted in elapsed time. Where steps differ, such as at holidays, the median step counts.

    Args:
        stamps: at least two.
        n: how many to add.

    Examples:
        >>> following(pd.DatetimeIndex(["2019-10-31", "2019-11-30", "2019-12-31"]), 2).strftime("%m-%d").tolist()
        ['01-31', '02-29']
        >>> following(pd.date_range("2021-07-05", "2021-07-16", freq="B"), 2).day_name().tolist()
        ['Monday', 'Tuesday']
        >>> following(pd.date_range("2024-10-25", "2024-10-27", freq="D", tz="Europe/Berlin"), 1)[0].isoformat()
        '2024-10-28T00:00:00+01:00'
    """
    stamps = stamps[-RECENT:]
    wall = stamps.tz_localize(None)
    step = offset(wall)
    if step is None:
        usual = stamps.to_series().diff().median()
        after = pd.date_range(stamps[-1], periods=n + 1, freq=usual)[1:]
        return pd.DatetimeIndex(after.as_unit(stamps.unit), freq=None)
    after = pd.date_range(wall[-1], periods=n + 1, freq=step)[1:].as_unit(stamps.unit)
    # an hour that clocks show twice is the first one, one that they skip the next
    found = after.tz_localize(stamps.tz, ambiguous=np.ones(n, dtype=bool), nonexistent="shift_forward")
    return pd.DatetimeIndex(found, freq=None)


def offset(wall: pd.DatetimeIndex) -> pd.DateOffset | None:
    """The step of time stamps without a zone in months, business days or whole days; None where it is another."""
    if len((wall - wall.normalize()).unique()) > 1:
        return None
    months = (wall.year * 12 + wall.month).to_series().diff().iloc[1:]
    if months.min() > 0:
        anchor = 31 if wall.is_month_end.all() else wall.day.max()
        if (wall.day == np.minimum(wall.days_in_month, anchor)).all():
            return pd.DateOffset(months=int(months.median()), day=int(anchor))
        if len(wall) > 2 and (name := pd.infer_freq(wall)):  # the last business day of a month, the third Friday
            return pd.tseries.frequencies.to_offset(name)
    days = int(wall.to_series().diff().dt.days.median())
    if days == 1 and wall.dayofweek.max() < 5 and len(wall) > 5:
        return pd.offsets.BusinessDay()
    return pd.DateOffset(days=days)
