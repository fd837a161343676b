"""Checkpoints that are damaged or come from elsewhere: nothing they name is imported, nothing they claim is built."""

import copy
import errno
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, final

import pytest
import torch
from conftest import FAST, Command, save

import msae
from msae import InputError
from msae.models import checkpoint as of_file
from msae.models.ae import AutoEncoder
from msae.models.archive import WholeCheckpoints
from msae.models.lgta import LGTA
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor

Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What a checkpoint holds."""
    path = tmp_path_factory.mktemp("one") / "one.ckpt"
    save(AutoEncoder((2, 8), latent_dim=3, hidden_dims=(4,)), str(path), ["a", "b"])
    found: Content = torch.load(path, weights_only=True)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(content: Content, path: str = "best.ckpt") -> bytes:
    WholeCheckpoints().save_checkpoint(content, path)
    return Path(path).read_bytes()


def refused(content: Content) -> str:
    """What `load` says of a checkpoint with a sound checksum."""
    write(content)
    with pytest.raises(InputError) as error:
        msae.load("best.ckpt")
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith("checkpoint best.ckpt: ")
    return str(error.value)


def test_any_flipped_bit_is_noticed(content: Content) -> None:
    good = write(content)
    assert msae.load("best.ckpt").names == ["a", "b"]
    rng = random.Random(0)
    for at in [0, len(good) - 1, len(good) - 70, *rng.sample(range(len(good)), 60)]:
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        Path("best.ckpt").write_bytes(bad)
        with pytest.raises(InputError, match=r"^checkpoint best\.ckpt: damaged, .*; expected an undamaged copy of it$"):
            msae.load("best.ckpt")


def test_parts_of_larger_tensors_are_saved_alone(tmp_path: Path) -> None:
    """And a state_dict keeps the versions of its modules."""
    state = torch.nn.BatchNorm1d(3).state_dict()
    whole = torch.arange(300_000.0).reshape(3, -1)
    WholeCheckpoints().save_checkpoint({"state_dict": state, "part": whole[1, :4]}, tmp_path / "x.ckpt")
    found = WholeCheckpoints().load_checkpoint(tmp_path / "x.ckpt")
    assert found["part"].tolist() == [100_000, 100_001, 100_002, 100_003]
    assert (tmp_path / "x.ckpt").stat().st_size < 10_000
    assert found["state_dict"]._metadata == state._metadata


def test_a_cut_or_flipped_file_without_checksum_is_noticed(content: Content) -> None:
    """As older versions wrote it, and as a plain Trainer does."""
    torch.save(content, "best.ckpt")
    good = Path("best.ckpt").read_bytes()
    assert msae.load("best.ckpt").names == ["a", "b"]
    weights = good.index(content["state_dict"]["encoder.0.weight"].numpy().tobytes())
    for bad in (good[: weights + 2], b"", good[:weights] + bytes([good[weights] ^ 1]) + good[weights + 1 :]):
        Path("best.ckpt").write_bytes(bad)
        with pytest.raises(InputError, match=r"^checkpoint best\.ckpt: damaged, "):
            msae.load("best.ckpt")


def test_other_programs_read_it(content: Content) -> None:
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    write(content)
    for found in (torch.load("best.ckpt", weights_only=True), TorchCheckpointIO().load_checkpoint("best.ckpt")):
        assert found["state_dict"].keys() == content["state_dict"].keys()


@pytest.mark.parametrize(("bad", "sound"), [("best.ckpt", "last.ckpt"), ("last.ckpt", "best.ckpt")])
def test_the_sound_one_of_best_and_last_is_named(content: Content, bad: str, sound: str) -> None:
    write(content, sound)
    Path(bad).write_bytes(write(content, bad)[:-200])
    with pytest.raises(InputError, match=rf"^checkpoint {bad}: damaged, .*; use {sound}, which is sound$"):
        msae.load(bad)
    Path(sound).write_text("neither")
    with pytest.raises(InputError, match="expected an undamaged copy of it"):
        msae.load(bad)


def test_a_full_disk_keeps_the_old_checkpoint(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(content)

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(InputError) as error:  # noqa: PT012
        patch.setattr(Path, "write_bytes", full)
        WholeCheckpoints().save_checkpoint(content | {"epoch": 9}, "best.ckpt")
    assert str(error.value).startswith("best.ckpt: cannot be written: No space left on device, ")
    assert str(error.value).endswith(" free in .; the old file is kept")
    assert Path("best.ckpt").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["best.ckpt"]


def test_the_temporary_folder_is_not_used(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    write(content)
    assert [path.name for path in Path().iterdir()] == ["best.ckpt"]


# What it names


def test_a_class_that_a_file_names_is_not_imported(content: Content) -> None:
    sys.modules.pop("antigravity", None)
    said = refused(content | {"model_class": "antigravity:X"})
    assert "antigravity" not in sys.modules
    assert said.endswith(
        "its model is antigravity:X, which is not imported for a file that names it; where you trust it, import "
        "antigravity in Python, type model_class=antigravity:X, or register it as an entry point of msae.models"
    )


@pytest.mark.parametrize(
    "path",
    [
        "json:loads",
        "msae.models.ae:No",
        "msae.models.ae:Reconstructor",
        "msae.models.nothing:X",
        "msae:MultiScaleDetector",
        "msae.models.layers:torch.nn.Linear",
        "",
        ":",
        "json",
        "json:",
        "a" * 3000,
    ],
)
def test_other_classes_are_refused(content: Content, path: str) -> None:
    assert len(refused(content | {"model_class": path})) < 1000


@final
class Mine(Reconstructor):
    """A model of a user's own, whose constructor needs the values of its weights."""

    def __init__(self, shape: Any, **training: Any) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        self.down = torch.nn.Linear(self.channels * self.length, 2)
        self.least = self.down.weight.min().item()
        self.codes = {"whole": slice(0, 2)}

    def encode_scaled(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.down(x.flatten(1))
        return z

    def decode_scaled(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.down.weight).unflatten(1, (self.channels, self.length))


def test_a_class_that_the_caller_imported() -> None:
    save(Mine((1, 4)), "best.ckpt")
    assert type(msae.load("best.ckpt")) is Mine


def test_a_registered_class(monkeypatch: pytest.MonkeyPatch) -> None:
    save(Mine((1, 4)), "best.ckpt")
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(InputError, match="is not imported for a file that names it"):
        msae.load("best.ckpt")
    point = EntryPoint("mine", f"{__name__}:Mine", of_file.GROUP)
    monkeypatch.setattr(of_file, "entry_points", lambda group: [point] if group == "msae.models" else [])
    monkeypatch.setattr(EntryPoint, "load", lambda _: Mine)
    assert type(msae.load("best.ckpt")) is Mine


# What it claims


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gigabyte of memory is available."""
    monkeypatch.setattr(of_file, "available", lambda: 1e9)
    return


@pytest.mark.parametrize(
    ("cls", "claims"),
    [
        (AutoEncoder, {"hidden_dims": [25_000_000, 25_000_000]}),
        (AutoEncoder, {"latent_dim": 2**62}),
        (AutoEncoder, {"shape": (2**62, 2**62)}),
        (PyramidAutoEncoder, {"passes": 2**40}),
        (PyramidAutoEncoder, {"hidden_dim": 2**40}),
        (LGTA, {"shape": (1, 2**40), "steps": 2**40}),
    ],
)
@pytest.mark.usefixtures("no_memory")
def test_a_claim_of_size_takes_no_memory(cls: type, claims: Content) -> None:
    save(cls((1, 16)), "best.ckpt")
    found = torch.load("best.ckpt", weights_only=True)
    found["hyper_parameters"] |= claims
    assert refused(found).startswith("checkpoint best.ckpt: ")


def test_a_tensor_that_is_larger_than_its_file(content: Content) -> None:
    """All its values are one: a matrix of petabytes fits in a small file."""
    found = copy.deepcopy(content)
    found["state_dict"]["encoder.0.weight"] = torch.zeros(1).expand(4, 16)
    assert refused(found).endswith("state_dict, encoder.0.weight: not all its values are in the file")


def test_a_zip_bomb(content: Content) -> None:
    import zipfile

    write(content)
    with zipfile.ZipFile("best.ckpt") as old, zipfile.ZipFile("last.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for one in old.infolist():
            new.writestr(one.filename, bytes(10_000_000) if one.filename.endswith("data/0") else old.read(one))
    with pytest.raises(InputError, match=r"^checkpoint last\.ckpt: damaged, it claims to be larger than its file"):
        msae.load("last.ckpt")


ODD: tuple[Any, ...] = (None, -1, 2**70, 1.5, float("nan"), "x", "", [], [[]], {}, {"a": 1}, True, torch.zeros(3), b"b")


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value in nested dicts."""
    for key in list(value) if isinstance(value, dict) else []:
        yield (*above, key)
        yield from places(value[key], (*above, key))


def at(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


FIELDS = ("model_class", "hyper_parameters", "state_dict", "epoch", "global_step")


def deleted(holder: Content, key: str, _rng: random.Random) -> None:
    del holder[key]


def mistyped(holder: Content, key: str, rng: random.Random) -> None:
    holder[key] = rng.choice(ODD)


def unknown(holder: Content, key: str, rng: random.Random) -> None:
    holder[rng.choice(["new", 3, key + "_"])] = rng.choice(ODD)


@pytest.mark.parametrize("damage", [deleted, mistyped, unknown])
def test_a_field_that_is_missing_mistyped_or_unknown(
    content: Content, damage: Callable[[Content, str, random.Random], None]
) -> None:
    """It is one line that names the file, or the model is as good as before."""
    rng = random.Random(1)
    for keys in [keys for keys in places(content) if keys[0] in FIELDS]:
        found = copy.deepcopy(content)
        damage(at(found, keys[:-1]), keys[-1], rng)
        write(found)
        try:
            said = ""
            assert msae.load("best.ckpt")(torch.zeros(1, 2, 8))[0].shape == (1, 2, 8), keys
        except InputError as error:
            said = str(error)
        assert len(said.splitlines()) == bool(said), keys
        assert not said or said.startswith("checkpoint best.ckpt: "), keys


@pytest.mark.parametrize(
    "damage",
    [
        {"loops": 3},
        {"loops": {}},
        {"loops": {"fit_loop": {"epoch_progress": None}}},
        {"optimizer_states": []},
        {"optimizer_states": [{"state": "x"}]},
        {"callbacks": 1},
        {"callbacks": None},
        {"lr_schedulers": 1},
        {"pytorch-lightning_version": 5},
    ],
)
def test_a_training_state_that_cannot_be_restored(damage: Content, made: Command, command: Command) -> None:
    made(*FAST, "model=ae", "hydra.run.dir=run")
    found = torch.load("run/last.ckpt", weights_only=True)
    write(found | damage, "run/last.ckpt")
    code, _, err = command("resume=run", "trainer.max_epochs=3")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith("error: resume=run/last.ckpt: its state of the training cannot be restored")


def test_resuming_notices_a_flipped_bit(made: Command, command: Command) -> None:
    made(*FAST, "model=ae", "hydra.run.dir=run")
    path = Path("run/last.ckpt")
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 4
    path.write_bytes(bad)
    code, _, err = command("resume=run", "trainer.max_epochs=3")
    said = "damaged, its content does not match its checksum; use run/best.ckpt, which is sound"
    assert (code, err) == (2, f"error: checkpoint run/last.ckpt: {said}\n")
    assert command("resume=run/best.ckpt", "trainer.max_epochs=3").code == 0
    assert of_file.read_checkpoint("run/last.ckpt")["epoch"] == 2


def test_a_model_of_a_users_own_in_a_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class is typed; an error says how."""
    code = Path(__file__).read_text()
    start, stop = code.index("@final\nclass Mine"), code.index("def test_a_class_that_the_caller_imported")
    header = "from typing import Any, final\nimport torch\nfrom msae.models.reconstructor import Reconstructor\n"
    Path("theirs.py").write_text(header + code[start:stop])
    monkeypatch.syspath_prepend(".")
    from theirs import Mine as Theirs  # type: ignore[import-not-found]

    save(Theirs((1, 64)), "best.ckpt")
    sys.modules.pop("theirs")
    args = ("ckpt=best.ckpt", "data=digits", "out=z.csv")
    code, _, err = command(*args, module="embed")
    assert (code, "type model_class=theirs:Mine, or register it as an entry point of msae.models" in err) == (2, True)
    assert "theirs" not in sys.modules
    code, _, err = command(*args, "model_class=theirs:Nothing", module="embed")
    assert (code, err) == (2, "error: model_class=theirs:Nothing: its model theirs:Nothing is not a Reconstructor\n")
    code, _, err = command(*args, "model_class=nowhere:Mine", module="embed")
    assert (code, err.startswith("error: model_class=nowhere:Mine: cannot be imported (No module")) == (2, True)
    code, _, err = command(*args, "model_class=theirs:Mine", module="embed")
    assert (code, err) == (0, "")
