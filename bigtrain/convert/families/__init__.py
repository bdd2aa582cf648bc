"""The families of models that can come from Hugging Face and go there, one file each."""

from bigtrain.config import ModelConfig
from bigtrain.convert.families.bert import BERT
from bigtrain.convert.families.gemma2 import GEMMA2
from bigtrain.convert.families.gemma3 import GEMMA3
from bigtrain.convert.families.gpt2 import GPT2
from bigtrain.convert.families.gpt_neox import GPT_NEOX
from bigtrain.convert.families.llama import LLAMA
from bigtrain.convert.families.mistral import MISTRAL
from bigtrain.convert.families.mixtral import MIXTRAL
from bigtrain.convert.families.olmo2 import OLMO2
from bigtrain.convert.families.phi3 import PHI3
from bigtrain.convert.families.qwen2 import QWEN2
from bigtrain.convert.families.qwen3 import QWEN3
from bigtrain.convert.families.qwen3_moe import QWEN3_MOE
from bigtrain.convert.families.roberta import ROBERTA, XLM_ROBERTA
from bigtrain.convert.families.roformer import ROFORMER
from bigtrain.convert.families.t5 import MT5, T5
from bigtrain.convert.family import Family
from bigtrain.errors import ConversionError

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    OLMO2,
    PHI3,
    GPT2,
    GPT_NEOX,
    MIXTRAL,
    QWEN3_MOE,
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    ROFORMER,
    T5,
    MT5,
)
"""In the order in which one is looked for that a model fits."""

_NAMES = {family.model_type: family.name for family in FAMILIES}


def family_of_type(model_type: str) -> Family:
    """The family that a `config.json` names.

    Raises:
        ConversionError: It is none of those here.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise ConversionError(f"model_type {model_type!r} is not supported; supported are {_list()}")


def family_of(model: ModelConfig, asked: str | None = None, origin: str | None = None) -> Family:
    """The family that a model of ours is to go to.

    Args:
        model: The model.
        asked: A `model_type`; default: that of `origin`, if the model still fits it, or else the first that it fits.
        origin: Where the model's weights came from.

    Raises:
        ConversionError: It fits none, or not the one asked for; names the keys that do not fit.
    """
    if asked is not None:
        family = family_of_type(asked)
        if wrong := family.misfits(model):
            raise ConversionError(f"this model is no {family.name}: {'; '.join(wrong)}")
        return family
    in_order = sorted(FAMILIES, key=lambda family: family.model_type != origin)
    misfits = [(family, family.misfits(model)) for family in in_order]
    for family, wrong in misfits:
        if not wrong:
            return family
    nearest, wrong = min(misfits, key=lambda pair: len(pair[1]))
    raise ConversionError(
        f"this model fits no family that can be exported ({_list()}); the nearest is {nearest.name}: {'; '.join(wrong)}"
    )


def _list() -> str:
    return ", ".join(f"{name} ({model_type})" for model_type, name in _NAMES.items())
