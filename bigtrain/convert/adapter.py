"""LoRA adapters as `peft` writes them: read, written, and merged into the weights of a Hugging Face family.

An adapted matrix is W + s B A, with A [r, in], B [out, r] and s = alpha / r, or alpha / sqrt(r) with `use_rslora`
(arXiv:2106.09685, arXiv:2312.03732).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bigtrain.convert.mapping import some
from bigtrain.errors import ConversionError

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_(A|B)\.weight")
_PLAIN: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "lora_bias": False,
}
"""Options of `peft` that must have these values, or not be there."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory; it is small beside the model."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """By the name of the family's weight: A and B, in the type they are saved in."""
    scales: Mapping[str, float]
    """What B A is multiplied by."""
    turned: bool = False
    """Whether the family keeps its matrices as [in, out] (`fan_in_fan_out`)."""

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A family's weight with what the adapter adds to it, in the weight's type; the product is taken in float32.

        Raises:
            ConversionError: The adapter's matrices do not fit the weight.
        """
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]
        added = self.scales[name] * (b.float() @ a.float())
        added = added.T if self.turned else added
        if added.shape != weight.shape:
            raise ConversionError(f"{name} is {tuple(weight.shape)}, and the adapter is for {tuple(added.shape)}")
        return (weight.float() + added).to(weight.dtype)

    def check_names(self, names: Mapping[str, Any]) -> None:
        """Raises:
        ConversionError: The model has no weight of a name that the adapter has.
        """
        if unknown := sorted(self.pairs.keys() - names.keys()):
            raise ConversionError(f"the adapter is for {some(unknown)}, and the model has no such weight")


def read_adapter(folder: Path) -> Adapter:
    """Read a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ConversionError: One is missing or damaged, or it is no plain LoRA.
    """
    config = _read_config(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / FILE, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                found = _NAME.fullmatch(name)
                if found is None:
                    raise ConversionError(f"{folder / FILE} holds {name}, which is no part of a LoRA of linear layers")
                halves.setdefault(found[1] + ".weight", {})[found[2]] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{folder / FILE} cannot be read: {error}") from None
    pairs, scales = {}, {}
    for name, half in halves.items():
        if len(half) < 2:
            raise ConversionError(f"{folder / FILE}: of {name} it has lora_{', '.join(half)} alone")
        pairs[name] = half["A"], half["B"]
        scales[name] = _scale(config, name, half["A"].shape[0])
    if not pairs:
        raise ConversionError(f"{folder / FILE} adapts nothing")
    return Adapter(pairs, scales, bool(config.get("fan_in_fan_out")))


def write_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    *,
    alpha: float,
    base_model: str,
    target_modules: Sequence[str] = (),
    task_type: str | None = "CAUSAL_LM",
    turned: bool = False,
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter into a folder, as `peft` reads it.

    Args:
        folder: Is there.
        pairs: By the name of the family's weight: A [r, in] and B [out, r], each pair of a rank of its own.
        alpha: s = alpha / r of all, where r is the least of the ranks.
        base_model: The name or folder of the model that it is for.
        target_modules: What the modules' names end with; default: their last parts.
        task_type: `peft`'s word for what the model does.
        turned: Whether the family keeps its matrices as [in, out].
        whole: Weights that take the place of others, by their names: those of a head.

    Raises:
        OSError: It cannot be written.
    """
    ranks = {name.removesuffix(".weight"): a.shape[0] for name, (a, _) in pairs.items()}
    usual = min(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": usual,
        "lora_alpha": alpha,
        "rank_pattern": others,
        "alpha_pattern": {module: alpha / usual * rank for module, rank in others.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "target_modules": sorted(target_modules or {module.rpartition(".")[2] for module in ranks}),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) if whole else None,
    }
    tensors = {_PREFIX + name: tensor.contiguous() for name, tensor in (whole or {}).items()}
    for name, pair in pairs.items():
        for half, tensor in zip("AB", pair, strict=True):
            tensors[f"{_PREFIX}{name.removesuffix('.weight')}.lora_{half}.weight"] = tensor.contiguous()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read as peft's configuration of an adapter ({error!r})") from None
    if kind != "LORA":
        raise ConversionError(f"{path}: peft_type is {kind!r}; LORA can be merged here")
    for key, value in _PLAIN.items():
        if config.get(key) and config[key] != value:
            raise ConversionError(f"{path}: {key} is {config[key]!r}, which cannot be merged here; plain LoRA can")
    return config


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """By the layer's own `alpha`, where a pattern names it."""
    module = name.removesuffix(".weight")
    alpha = float(config["lora_alpha"])
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})$", module):
            alpha = float(own)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
