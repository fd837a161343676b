"""Windows are cut and stitched without loss."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msae import InputError
from msae.data.windows import Views, cut, starts, stitch, values


@st.composite
def series(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """A series of any float32 values, with a length and a stride for its windows."""
    time = draw(st.integers(1, 60))
    length, stride = draw(st.integers(1, time)), draw(st.integers(1, 70))
    seed, channels = draw(st.integers(0, 1000)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, time, generator=generator) * 10 ** draw(st.integers(-6, 6)), length, stride


@given(series(), st.integers(1, 20))
@settings(deadline=None)
def test_stitch_undoes_cut(case: tuple[torch.Tensor, int, int], size: int) -> None:
    """Bit by bit, for every stride and remainder, in batches too; NaN where a long stride leaves a hole."""
    x, length, stride = case
    [windows] = cut(x, length, stride)
    assert torch.equal(torch.cat(list(cut(x, length, stride, size))), windows)
    where = starts(x.shape[1], length, stride)
    covered = torch.zeros(x.shape[1], dtype=torch.bool)
    for window, start in zip(windows, where, strict=True):
        assert torch.equal(window, x[:, start : start + length])
        covered[start : start + length] = True
    assert covered[0]
    assert covered[-1]
    assert covered.all() or stride > length
    for given_ in (windows, cut(x, length, stride, size)):
        back = stitch(given_, x.shape[1], stride)
        assert torch.equal(back[:, covered], x[:, covered])
        assert back[:, ~covered].isnan().all()


def test_overlaps_are_averaged() -> None:
    windows = torch.tensor([[[0.0, 0.0, 0.0]], [[3.0, 3.0, 3.0]], [[6.0, 6.0, 6.0]]])
    assert stitch(windows, 6, 2).tolist() == [[0, 0, 1.5, 4.5, 4.5, 6]]  # the last one starts at 3


@pytest.mark.parametrize(
    ("n", "time", "message"),
    [
        (3, 10, "expected the 4 of a series of 10 steps at stride 2, got 3"),
        (5, 10, "expected the 4 of a series of 10 steps at stride 2, got more"),
    ],
)
def test_another_number_of_windows(n: int, time: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stitch(torch.zeros(n, 1, 4), time, 2)


@pytest.mark.parametrize(("length", "stride", "message"), [(11, 1, "time=10"), (4, 0, "stride=0"), (0, 1, "length=0")])
def test_windows_that_cannot_be_cut(length: int, stride: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(cut(torch.zeros(1, 10), length, stride))


@given(st.lists(st.integers(5, 40), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_views(times: list[int], length: int, stride: int, data: st.DataObject) -> None:
    """Any windows of any stretches of any series are what slicing by hand gives, in any order."""
    blocks = [torch.arange(2.0 * t).reshape(t, 2) + 1000 * i for i, t in enumerate(times)]
    spans, expected = [], []
    for number, time in enumerate(times):
        edges = sorted(data.draw(st.sets(st.integers(0, time), min_size=2, max_size=4)))
        for start, stop in pairwise(edges):
            if stop - start >= length:
                spans.append((number, start, stop))
                expected += [blocks[number][i : i + length].T for i in range(start, stop - length + 1, stride)]
    views = Views(blocks, spans, length, stride)
    assert views.shape == (len(expected), 2, length)
    if expected:
        assert torch.equal(views[:], torch.stack(expected))
        index = torch.tensor(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=9)), dtype=torch.int32)
        assert torch.equal(views[index], torch.stack(expected)[index.long()])
        half, device = len(spans) // 2, torch.device("cpu")
        there = views.to(device)
        assert torch.equal(there[index], views[index])
        if half:
            part = Views(blocks, spans[:half], length, stride)
            assert torch.equal(part.to(device, there)[:], part[:])
            assert part.to(device, there).blocks is there.blocks
        rows = [blocks[number][start:stop].T for number, start, stop in spans]
        assert torch.equal(torch.cat(list(values(views)), 1), torch.cat(rows, 1))


def test_views_are_no_copies() -> None:
    block = torch.zeros(20, 1)
    views = Views([block], [(0, 0, 20)], 4)
    block[5] = 1
    assert views[2:6].sum() == 4


def test_views_of_another_device() -> None:
    """Their windows are there too, of one block or of several."""
    for blocks, spans in (([torch.ones(9, 2)], [(0, 0, 9)]), ([torch.ones(3, 2, 4)] * 2, [(0, 0, 3), (1, 0, 2)])):
        views = Views(blocks, spans, None if blocks[0].ndim == 3 else 4)
        assert views.nbytes == sum(block.nbytes for block in blocks)
        assert torch.equal(views.to(torch.device("cpu"))[:], views[:])
    assert Views([torch.ones(9, 2)], [(0, 0, 9)], 4).to(torch.device("meta"))[:].device.type == "meta"


def test_windows_already_cut() -> None:
    block = torch.arange(24.0).reshape(4, 2, 3)
    views = Views([block], [(0, 3, 4), (0, 1, 2)])
    assert views.shape == (2, 2, 3)
    assert torch.equal(views[:], block[[3, 1]])
    assert torch.equal(torch.cat(list(values(views)), 1), block[[3, 1]].movedim(1, 0).flatten(1))
