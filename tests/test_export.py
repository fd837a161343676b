"""Models for other programs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from conftest import Command, save
from hydra.utils import instantiate
from test_configs import CLASSES, compose
from torch import Tensor

import msae
from msae import export
from msae.models.ae import AutoEncoder
from msae.models.lgta import LGTA
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor

FACTS = ("model", "channels", "length", "dtype", "codes", "columns")
TAKEN = {"model": "x", "model.encoder": "x", "model.decoder": "z"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def trained(model: Reconstructor, **statistics: Any) -> None:
    """A checkpoint `best.ckpt` of a model whose weights all have an effect; its channels have very different units."""
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save(model, "fresh.ckpt", ["low", "high"][: model.channels])
    powers = torch.tensor([[0.01], [300.0]])[: model.channels]
    low_high = torch.tensor([-0.005, 1000.0])
    if "base" in statistics:
        low_high = low_high.double() + 1e9
    model.set_statistics(powers * 5, powers, low_high, names=["low", "high"][: model.channels], **statistics)
    checkpoint = torch.load("fresh.ckpt", weights_only=True)
    torch.save(checkpoint | {"state_dict": model.state_dict()}, "best.ckpt")


def of(name: str) -> Reconstructor:
    model: Reconstructor = instantiate(compose(f"model={name}", "model.schedule=constant").model, shape=(2, 50))
    return model


def windows(n: int, holes: bool, model: Reconstructor) -> Tensor:
    """In raw units; some steps are missing, and a whole channel of the second."""
    x = model.raw(model.offset + model.scale * torch.randn(n, model.channels, model.length))
    if holes:
        x[:, 0, 2:5] = x[1:2, -1] = torch.nan
    return x


def opened(path: str) -> Callable[[Tensor], list[Tensor]]:
    """The output of a file for a value, computed by another program."""
    if path.endswith(".pt2"):
        module = torch.export.load(path).module()
        return lambda value: [found] if isinstance(found := module(value), Tensor) else list(found)
    session, taken = onnxruntime.InferenceSession(path), TAKEN[Path(path).stem]
    return lambda value: [torch.from_numpy(found) for found in session.run(None, {taken: value.numpy()})]


def check(ending: str, holes: bool) -> None:
    """The three files against PyTorch, channel by channel and code by code, for other numbers of windows."""
    model = msae.load("best.ckpt")
    files = [opened(f"{name}{ending}") for name in TAKEN]
    for n in (1, 2, 7):
        x = windows(n, holes, model)
        with torch.no_grad():
            x_hat, z = model(x)
            (whole, of_whole), (coded,), (decoded,) = (f(v) for f, v in zip(files, (x, x, z), strict=True))
        assert torch.isfinite(x_hat).all()
        for code in model.codes.values():
            close(of_whole[:, code], z[:, code], z[:, code])
            close(coded[:, code], z[:, code], z[:, code])
        above = x if model.base is None else x - model.base
        assert (whole.dtype, decoded.dtype) == (x.dtype, x.dtype)
        for i in range(model.channels):
            close(whole[:, i], x_hat[:, i], above[:, i])
            close(decoded[:, i], x_hat[:, i], above[:, i])


def close(found: Tensor, expected: Tensor, size: Tensor) -> None:
    assert found.numpy() == pytest.approx(expected.numpy(), rel=0, abs=1e-5 * float(size.nan_to_num().abs().max()))


@pytest.mark.parametrize("name", CLASSES)
def test_every_model_in_onnxruntime(name: str, command: Command) -> None:
    """With `normalize=window`, and missing values."""
    trained(of(name), per_window=True, missing=True)
    code, out, err = command("ckpt=best.ckpt", "out=model.onnx", module="export")
    assert (code, err) == (0, "")
    assert float(out.split()[6]) < 1e-5
    check(".onnx", holes=True)


@pytest.mark.parametrize("per_window", [False, True])
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_levels_are_subtracted_in_double_precision(ending: str, per_window: bool, command: Command) -> None:
    """Also in the exported files, which then take and give float64."""
    base = torch.full((2, 1), 1e9, dtype=torch.float64)
    trained(of("ae"), base=base, per_window=per_window, bounded=not per_window)
    code, _, err = command("ckpt=best.ckpt", f"out=model{ending}", module="export")
    assert (code, err) == (0, "")
    check(ending, holes=False)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_as_a_program(name: str, command: Command) -> None:
    """With statistics of the training split, and a range to which reconstructions may be clipped."""
    trained(of(name), bounded=True)
    assert command("ckpt=best.ckpt", "out=model.pt2", module="export").code == 0
    check(".pt2", holes=False)


@pytest.mark.parametrize(
    "model", [PyramidAutoEncoder((1, 8, 8), latent_dim=16, segments=[1, 4], passes=2), LGTA((1, 8, 8), global_dim=2)]
)
def test_images_and_ranges_in_onnxruntime(model: Reconstructor, command: Command) -> None:
    """The windows are images, with a range to which the pyramid clips several times."""
    trained(model, bounded=True, missing=True)
    assert command("ckpt=best.ckpt", "out=model.onnx", module="export").code == 0
    check(".onnx", holes=True)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_what_the_files_say(ending: str, command: Command) -> None:
    trained(MultiScaleAutoEncoder((2, 8), small_dim=2, large_dim=3), per_window=True)
    code, out, err = command("ckpt=best.ckpt", f"out=out/model{ending}", module="export")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        f"  out/model{ending}: x -> x_hat, z",
        f"  out/model.encoder{ending}: x -> z",
        f"  out/model.decoder{ending}: z -> x_hat",
    ]
    for path in (f"out/{name}{ending}" for name in TAKEN):
        if ending == ".onnx":
            file = onnx.load(path)
            onnx.checker.check_model(file, full_check=True)
            assert len(file.opset_import) == 1
            texts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        else:
            texts = dict.fromkeys(FACTS, "")
            torch.export.load(path, extra_files=texts)
        facts = {key: json.loads(texts[key]) for key in FACTS}
        assert facts["model"] == "MultiScaleAutoEncoder"
        assert (facts["channels"], facts["length"], facts["dtype"]) == (["low", "high"], 8, "float32")
        assert facts["codes"] == {"small": [0, 2], "large": [2, 5], "level": [5, 9]}
        assert facts["columns"] == [
            "small_0",
            "small_1",
            "large_0",
            "large_1",
            "large_2",
            *(f"level_{i}" for i in range(4)),
        ]
        assert str(Path(msae.__file__).parent).encode() not in Path(path).read_bytes()


def test_what_exists_is_kept(command: Command) -> None:
    trained(AutoEncoder((1, 8), latent_dim=3))
    Path("model.decoder.onnx").write_text("precious")
    code, out, err = command("ckpt=best.ckpt", "out=model.onnx", module="export")
    assert (code, out) == (2, "")
    assert err == "error: out=model.onnx: model.decoder.onnx exists; overwrite=true replaces it\n"
    assert Path("model.decoder.onnx").read_text() == "precious"
    assert not Path("model.onnx").exists()
    assert command("ckpt=best.ckpt", "out=model.onnx", "overwrite=true", module="export").code == 0
    check(".onnx", holes=False)


class Inverting(torch.autograd.Function):
    """An operation that no exporter knows."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(-x.detach().numpy())


def inverted(model: AutoEncoder, z: Tensor) -> Tensor:
    return Inverting.apply(model.decoder(z)).unflatten(1, (model.channels, model.length))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_model_that_cannot_be_exported(ending: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(AutoEncoder((1, 8), latent_dim=3))
    monkeypatch.setattr(AutoEncoder, "decode_scaled", inverted)
    code, out, err = command("ckpt=best.ckpt", f"out=out/model{ending}", module="export")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ckpt=best.ckpt: AutoEncoder cannot be exported: ")
    assert {path.name for path in Path().iterdir()} == {"fresh.ckpt", "best.ckpt"}


def test_one_that_gives_something_else(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxscript's optimizer once caused such a difference."""
    trained(AutoEncoder((1, 8), latent_dim=3))
    of_session = export.of_session

    def wrong(content: bytes) -> Any:
        run = of_session(content)
        return lambda x: {name: values * 1.0001 for name, values in run(x).items()}

    monkeypatch.setattr(export, "of_session", wrong)
    code, _, err = command("ckpt=best.ckpt", "out=model.onnx", module="export")
    assert (code, err[:73]) == (2, "error: ckpt=best.ckpt: the exported AutoEncoder differs from PyTorch by 1")
    assert not list(Path().glob("model*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["out=model.onnx"], "ckpt: no value; expected the folder of a run, or its best.ckpt"),
        (["ckpt=best.ckpt"], "out: no value; expected a file ending .onnx or .pt2"),
        (["ckpt=best.ckpt", "out=model.pth"], "out=model.pth: expected a file ending .onnx or .pt2"),
        (["ckpt=none.ckpt", "out=model.onnx"], "checkpoint none.ckpt: no such file"),
        (["ckpt=best.ckpt", "out=file/model.onnx"], "out=file/model.onnx: file is a file; expected a folder"),
        (["ckpt=best.ckpt", "to=model.onnx"], "to: no such key"),
    ],
)
def test_mistakes(args: list[str], message: str, command: Command) -> None:
    Path("file").touch()
    code, out, err = command(*args, module="export")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {message}")
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_without_the_libraries(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = command("ckpt=best.ckpt", "out=model.onnx", module="export")
    assert (code, err) == (
        2,
        "error: out=model.onnx needs onnxscript: pip install onnxscript (or msae's extra [export])\n",
    )


def test_help(tmp_path: Path) -> None:
    """It names every fact in the files, before anything heavy is imported."""
    code = "import sys, msae.export\ntry: msae.export.main()\nfinally: print({'torch', 'onnx'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code, "--help", "-v"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stdout.endswith("set()\n")
    assert all(re.search(rf"\b{fact}, ", result.stdout) for fact in FACTS)
