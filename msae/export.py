"""A trained model for other programs: `python -m msae.export ckpt=RUN out=model.onnx`, or `out=model.pt2`."""

from __future__ import annotations

import importlib
import io
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.errors import InputError, needs
from msae.runs.mistakes import reason_of
from msae.whole import to_json, whole

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from collections.abc import Callable, Mapping

    import onnx
    from jaxtyping import Float
    from torch import Tensor
    from torch.export import ExportedProgram

    from msae.models.reconstructor import Reconstructor

    Run = Callable[[Tensor], Mapping[str, Tensor]]
    """A function from a file's input to its outputs by their names."""

PARTS = {"": ["x_hat", "z"], ".encoder": ["z"], ".decoder": ["x_hat"]}
"""The outputs of each file, by the part of its name before the suffix; the decoder takes z, the others x."""
TOLERANCE = 1e-5
"""The greatest accepted difference from PyTorch, relative to the greatest value of a channel or of the latent."""


def export(cfg: DictConfig) -> list[Path]:
    """Write the whole model, its encoder and its decoder, one file each, and return their paths.

    Each file takes any number of windows or latents, in raw units like `Reconstructor`. Before anything is written, its
    outputs are compared with those of PyTorch.

    Raises:
        InputError: an invalid checkpoint or path, a model that cannot be exported, or an exported model whose outputs
            differ.
    """
    to = check(cfg)
    import torch

    model = read.model_of(cfg)
    torch.manual_seed(0)
    x = model.raw(model.offset + model.scale * torch.randn(3, model.channels, model.length))
    suffix = to.suffix.lower()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from inside the exporters, such as one about an LSTM's weights
            contents, runs = (onnx_files if suffix == ".onnx" else pt2_files)(model, x)
    except Exception as error:
        reason = reason_of(error)[:200]
        raise InputError(f"ckpt={cfg.ckpt}: {type(model).__name__} cannot be exported: {reason}") from error
    off = max(difference(model, x[:n], runs) for n in (1, 2))
    if not off <= TOLERANCE:
        raise InputError(f"ckpt={cfg.ckpt}: the exported {type(model).__name__} differs from PyTorch by {off:.1e}")
    paths = [beside(to, part) for part in PARTS]
    to.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for path, content in zip(paths, contents, strict=True):
            stack.enter_context(whole(path)).write_bytes(content)
    print(f"differs from PyTorch by at most {off:.1e}")
    for path, outputs in zip(paths, PARTS.values(), strict=True):
        print(f"  {path}: {'z' if path.stem.endswith('.decoder') else 'x'} -> {', '.join(outputs)}")
    return paths


def check(cfg: DictConfig) -> Path:
    """The path `cfg.out`; InputError unless it can be written and its libraries are installed."""
    for key, expected in (("ckpt", "the folder of a run, or its best.ckpt"), ("out", "a file ending .onnx or .pt2")):
        if OmegaConf.is_missing(cfg, key) or not cfg[key]:
            raise InputError(f"{key}: no value; expected {expected}")
    to = Path(cfg.out).expanduser()
    if to.suffix.lower() not in (".onnx", ".pt2"):
        raise InputError(f"out={to}: expected a file ending .onnx or .pt2")
    write.check_free("out", to, [beside(to, part) for part in PARTS], cfg.overwrite)
    if to.suffix.lower() == ".onnx":
        try:
            for name in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(name)
        except ImportError:
            raise needs(f"out={to}", name, "export") from None
    return to


def beside(to: Path, part: str) -> Path:
    """The path of a part, such as `model.encoder.onnx` beside `model.onnx`."""
    return to.with_name(f"{to.stem}{part}{to.suffix}")


def about(model: Reconstructor) -> dict[str, str]:
    """The metadata of the model in each file, by name, as JSON.

    `model` is its class; `channels` are their names, or null if the data had none; `length` is that of a window;
    `dtype` is that of windows, float64 where the training data are small changes on a large level, else float32;
    `codes` are, for each scale, the first value in the latent and the one after the last; `columns` are the names of
    the latent values in `msae.embed`.
    """
    from msae import embed

    facts = {
        "model": type(model).__name__,
        "channels": None if model.names is None else list(model.names),
        "length": model.length,
        "dtype": str(model.raw_dtype).removeprefix("torch."),
        "codes": {name: [code.start, code.stop] for name, code in model.codes.items()},
        "columns": embed.names(model),
    }
    return {key: to_json(value) for key, value in facts.items()}


def part(model: Reconstructor, name: str, x: Float[Tensor, "batch channels length"]) -> tuple[Any, Tensor]:
    """The module of a file, and an example of its input."""
    from torch import nn

    function = {"": model.forward, ".encoder": model.encode, ".decoder": model.decode}[name]

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return function(x)

    return Part().eval(), model.encode(x) if name == ".decoder" else x


def pt2_files(model: Reconstructor, x: Float[Tensor, "batch channels length"]) -> tuple[list[bytes], list[Run]]:
    """The contents of the files for `torch.export.load`, with `about` as `extra_files`, and functions that run them."""
    import torch

    contents, runs = [], []
    for name, outputs in PARTS.items():
        module, example = part(model, name, x)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
        torch.export.save(program, file := io.BytesIO(), extra_files=about(model))
        contents.append(file.getvalue())
        runs.append(of_program(program, outputs))
    return contents, runs


def of_program(program: ExportedProgram, outputs: list[str]) -> Run:
    """A function that runs an exported program."""
    module = program.module()

    def run(x: Tensor) -> dict[str, Tensor]:
        found = module(x)
        return dict(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))

    return run


def onnx_files(model: Reconstructor, x: Float[Tensor, "batch channels length"]) -> tuple[list[bytes], list[Run]]:
    """The contents of the ONNX files, with `about` as metadata, and functions that run them."""
    import onnx
    from onnx import compose

    encoder, decoder = (onnx_part(model, name, x) for name in (".encoder", ".decoder"))
    apart = {"rename_inputs": False, "rename_outputs": False}
    whole = compose.merge_models(
        compose.add_prefix(encoder, "encoder/", **apart),
        compose.add_prefix(decoder, "decoder/", **apart),
        io_map=[("z", "z")],
        outputs=PARTS[""],
        producer_name="msae",
    )
    whole.graph.output.sort(key=lambda output: PARTS[""].index(output.name))
    del whole.opset_import[len(encoder.opset_import) :]  # the merged model lists those of both
    contents = []
    for file in (whole, encoder, decoder):
        onnx.helper.set_model_props(file, about(model))
        contents.append(file.SerializeToString())
    return contents, [of_session(content) for content in contents]


def onnx_part(model: Reconstructor, name: str, x: Float[Tensor, "batch channels length"]) -> onnx.ModelProto:
    """The encoder or decoder in ONNX, without the exporter's notes on the source code."""
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    module, example = part(model, name, x)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["z" if name == ".decoder" else "x"],
        output_names=PARTS[name],
        verbose=False,
        optimize=False,  # onnxruntime optimizes; onnxscript loses the bounds of nested clamps
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return program.model_proto


def of_session(content: bytes) -> Run:
    """A function that runs an ONNX file in onnxruntime."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [taken], given = session.get_inputs(), [output.name for output in session.get_outputs()]

    def run(x: Tensor) -> dict[str, Tensor]:
        found = session.run(given, {taken.name: x.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(given, found, strict=True)}

    return run


def difference(model: Reconstructor, x: Float[Tensor, "batch channels length"], runs: list[Run]) -> float:
    """The greatest difference between the outputs of the files and those of PyTorch.

    It is relative to the greatest value of the channel for reconstructions, and of the latent, or its `level`, for z.
    """
    import torch

    with torch.no_grad():
        x_hat, z = model(x)
        above = x if model.base is None else x - model.base
        found = {name: run(z if name == ".decoder" else x) for name, run in zip(PARTS, runs, strict=True)}
    level = model.codes.get("level", slice(model.latent_dim, None)).start
    places = {
        "x_hat": [(x_hat[:, [i]], above[:, i], slice(i, i + 1)) for i in range(model.channels)],
        "z": [(z[:, place], z[:, place], place) for place in (slice(level), slice(level, None)) if z[:, place].numel()],
    }
    return max(
        float((values[:, place] - expected).abs().max() / whole.abs().max())
        for outputs in found.values()
        for output, values in outputs.items()
        for expected, whole, place in places[output]
    )


def main() -> None:
    """The command."""
    cli.run(export, "export")


if __name__ == "__main__":
    cli.start("export")
