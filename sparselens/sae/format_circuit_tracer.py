"""circuit-tracer transcoders: `config.yaml` + `layer_{i}.safetensors`; a cross-layer set: `W_enc_{i}` and `W_dec_{i}`.

Layout: https://github.com/safety-research/circuit-tracer, checked against circuit-tracer 0.5.0. Encoders lie the other
way round than here. A cross-layer transcoder of n layers is n transcoders, the i-th of which reads layer i and writes
the layers from i on, side by side; its `b_dec` is that of layer i, so that the sum over all of them is the whole.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparselens.errors import FileFormatError, InputError
from sparselens.sae.assemble import assemble, renamed
from sparselens.sae.conversion import as_jumprelu, plain
from sparselens.sae.format_saelens import read_tensors, write_tensors
from sparselens.sae.sae import SAE

CONFIG = "config.yaml"
_LAYER = re.compile(r"(?:layer_|W_enc_)(\d+)\.safetensors")
_NAMES = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_OPTIONAL = {"activation_function.threshold": "activation.threshold", "W_skip": "W_skip"}
_INPUT, _OUTPUT = "mlp.hook_in", "hook_mlp_out"


def layers(folder: Path) -> dict[int, Path]:
    """The files of a set, by layer."""
    found = {int(m[1]): file for file in folder.glob("*.safetensors") if (m := _LAYER.fullmatch(file.name))}
    return dict(sorted(found.items()))


def detect(path: Path) -> bool:
    """Whether `path` is a file of such a set."""
    return path.is_file() and bool(_LAYER.fullmatch(path.name))


def read(path: Path, dtype: torch.dtype | None = torch.float32) -> SAE:
    """Read the transcoder of one layer: `set/layer_3.safetensors`, or `set/W_enc_3.safetensors` of a cross-layer set.

    Raises:
        FileFormatError: damaged files, or unknown tensors.
    """
    found = _LAYER.fullmatch(path.name)
    if found is None:
        raise FileFormatError(f"{path} is no file of a circuit-tracer set.")
    layer, config = int(found[1]), _config(path.parent)
    across = path.name.startswith("W_enc_")
    tensors = _across(path, layer) if across else read_tensors(path)
    names = _NAMES | {theirs: ours for theirs, ours in _OPTIONAL.items() if theirs in tensors}
    ours = renamed(tensors, names, path)
    d = ours["W_enc"].shape[0]
    into, out = config.get("feature_input_hook", _INPUT), config.get("feature_output_hook", _OUTPUT)
    written = [f"blocks.{n}.{out}" for n in range(layer, layer + ours["W_dec"].shape[1] // d)]
    return assemble(
        "jumprelu" if "activation.threshold" in ours else "relu",
        ours,
        path,
        format="circuit_tracer",
        config=config,
        dtype=dtype,
        site=f"blocks.{layer}.{into}",
        site_out=written if len(written) > 1 else written[0],
        metadata={"model_name": config["model_name"]} if config.get("model_name") else {},
    )


def _across(path: Path, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer of a cross-layer set, under the names of a single one."""
    decoder = path.with_name(f"W_dec_{layer}.safetensors")
    mark = re.compile(rf"(.+)_{layer}")
    both = read_tensors(path) | read_tensors(decoder)
    tensors = {m[1] if (m := mark.fullmatch(name)) else name: value for name, value in both.items()}
    rows, spread = tensors.get("W_dec"), tensors.get("b_dec")
    if rows is None or rows.dim() != 3 or spread is None:
        raise FileFormatError(f"{decoder} does not hold the decoders of a cross-layer transcoder.")
    if "threshold" in tensors:
        tensors["activation_function.threshold"] = tensors.pop("threshold").flatten()
    bias = torch.zeros(rows.shape[1:], dtype=spread.dtype)
    bias[0] = spread
    return tensors | {"W_dec": rows.flatten(1), "b_dec": bias.flatten()}


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    if not (folder / CONFIG).is_file():
        return {}
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{folder / CONFIG} cannot be read as YAML ({error}).") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{folder / CONFIG} must hold a mapping, not {type(found).__name__}.")
    return found


def write(sae: SAE, folder: Path) -> None:
    """Write one transcoder into the empty folder `folder`, as the file of its layer. See also `write_set`.

    Raises:
        InputError: circuit-tracer cannot hold it.
    """
    write_set({_layer(sae): sae}, folder)


def write_set(saes: dict[int, SAE], folder: Path) -> None:
    """Write transcoders of one model, by layer. circuit-tracer itself wants every layer from 0 on.

    Raises:
        InputError: one of them cannot be held, or they read or write different kinds of place.
    """
    import yaml

    hooks = {tuple(site.split(".", 2)[2] for site in (s.reads[0], s.writes[0])) for s in saes.values()}
    if len(hooks) != 1:
        raise InputError(f"the transcoders of a set must read and write alike; these are {sorted(hooks)}.")
    for layer, sae in saes.items():
        if _layer(sae) != layer:
            raise InputError(f"the transcoder given for layer {layer} reads {sae.reads[0]}.")
        w = as_jumprelu(plain(sae, "circuit_tracer", {"relu", "jumprelu", "gated", "batchtopk"}, subtract=False), sae)
        tensors = {theirs: w[o.removesuffix(".T")].T if o.endswith(".T") else w[o] for theirs, o in _NAMES.items()}
        tensors |= {theirs: w[ours] for theirs, ours in _OPTIONAL.items() if ours in w}
        write_tensors(folder / f"layer_{layer}.safetensors", tensors)
    (into, out), first = hooks.pop(), next(iter(saes.values()))
    facts = {"model_kind": "transcoder_set", "model_name": first.model_name, "feature_input_hook": into}
    text = yaml.safe_dump(facts | {"feature_output_hook": out, "scan": None}, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _layer(sae: SAE) -> int:
    found = re.match(r"blocks\.(\d+)\.", sae.reads[0] if sae.reads else "")
    if found is None:
        raise InputError(
            "circuit-tracer names its files by layer, and this SAE does not say which it reads: set "
            "sae.metadata['hook_name'], such as 'blocks.3.mlp.hook_in'."
        )
    return int(found[1])
