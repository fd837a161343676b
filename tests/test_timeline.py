"""The picture of scores and events: its axis is that of the file."""

from datetime import timedelta, timezone

import numpy as np
import pytest
from matplotlib.dates import num2date

from msae.timeline import STRETCHES, Stretch, anomalies, titled
from msae.uses.events import Event

NAN = float("nan")
EVENT = Event(10, 14, 12, 3.0, 1, 1, 30)
STILL = Event(20, 29, 20, NAN, -1, 0, 25, "stands still")


def stretch(first: int, n: int, stamped: bool = True, channels: int = 2, found: tuple[Event, ...] = ()) -> Stretch:
    """Rows `first` to `first + n - 1` of a file with a row an hour."""
    rows = np.arange(first, first + n)
    stamps = np.datetime64("2024-01-01") + rows * np.timedelta64(1, "h") if stamped else None
    x = np.sin(rows)[:, None] * np.ones(channels)
    return Stretch(x, np.abs(np.sin(rows)) + 0.1, np.ones((n, 2)) * [1, 4], rows, stamps, found)


def test_rows_with_gaps() -> None:
    """Each stretch is at its rows, no line crosses the gap, and the events of both are shaded at their rows."""
    parts = [stretch(0, 50, False, found=(STILL,)), stretch(200, 60, False, found=(EVENT,))]
    figure = anomalies(parts, ["a", "flow [m3/h]"], ["small", "large"], 0.9)
    first, second, score, strip = figure.axes[:4]
    x, y = first.lines[0].get_data()
    assert np.asarray(x)[np.isfinite(np.asarray(y, float))].tolist() == [*range(50), *range(200, 260)]
    assert np.isnan(np.asarray(y, float)[50])
    assert np.asarray(score.lines[0].get_ydata(), float)[0] == pytest.approx(0.1)
    assert [axis.get_ylabel() for axis in (first, second)] == ["a", "flow\n[m3/h]"]
    assert strip.get_xlabel() == "row"
    spans = [[(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches] for axis in figure.axes[:3]]
    assert spans == [[(20, 29), (210, 214)], [(210, 214)], [(20, 29), (210, 214)]]
    assert [text.get_text() for text in first.texts] == ["stands still"]
    assert not second.texts
    assert [label.get_text() for label in strip.get_yticklabels()] == ["small", "large"]
    colours = strip.collections[0].get_array()
    assert colours.shape == (2, 111)
    assert colours.mask[:, 50].all() or np.isnan(colours[:, 50].astype(float)).all()
    assert np.asarray(colours[1, 0]) == 4


def test_time_stamps_with_gaps_in_a_zone() -> None:
    """Positions are the instants; labels are in the file's zone."""
    zone = timezone(timedelta(hours=5))
    figure = anomalies([stretch(0, 30), stretch(100, 30, found=(EVENT,))], ["a", "b"], [], 0.9, "when", zone)
    assert len(figure.axes) == 3
    [span] = figure.axes[0].patches
    assert str(num2date(span.get_x()))[:16] == "2024-01-05 14:00"  # row 110
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.axes[2].get_xticklabels()]
    ticks = [num2date(at, zone) for at in figure.axes[2].get_xticks()]
    assert {tick.hour for tick in ticks} == {0}
    assert all(labels)
    assert figure.axes[2].get_xlabel() == "when"


def test_long_series_keep_their_extremes() -> None:
    """A spike of one step in 300,000 is drawn, in both stretches; so is a scale's ratio."""
    parts = [stretch(0, 200_000, False), stretch(300_000, 100_000, False)]
    for part in parts:
        part.x[777, 0] = part.score[777] = part.times[777, 1] = 50
    figure = anomalies(parts, ["a", "b"], ["small", "large"], 0.9)
    for axis in (figure.axes[0], figure.axes[2]):
        corners = axis.collections[0].get_datalim(axis.transData).get_points()
        assert corners[1, 1] == 50
        assert corners[0, 0] < 1000
        assert corners[1, 0] > 399_000
    colours = np.nan_to_num(np.ma.filled(figure.axes[3].collections[0].get_array(), 0.0))
    assert (colours[1] == 50).sum() == 2
    assert colours.shape[1] <= STRETCHES + 2


def test_channels_with_events_are_shown() -> None:
    late = Event(5, 9, 7, 3.0, 0, 8, 20)
    figure = anomalies([stretch(0, 40, channels=10, found=(late,))], list("abcdefghij"), [], 0.9)
    assert [axis.get_ylabel() for axis in figure.axes[:-1]] == ["a", "b", "c", "i"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("flow [m3/h]", "flow\n[m3/h]"), ("T (°C)", "T\n(°C)"), ("x[1]y", "x[1]y"), ("[V]", "[V]"), ("a", "a")],
)
def test_units(name: str, shown: str) -> None:
    assert titled(name) == shown
