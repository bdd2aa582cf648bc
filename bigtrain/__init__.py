"""BigTrain: pretrain language models with Megatron-core, DeepSpeed ZeRO and Arrow shards."""

import logging
import warnings

__version__ = "0.1.0"

# Megatron-core tells at import, in five places, that Transformer Engine and Apex are missing.
# `bigtrain doctor` says so once, with the reason and what is used instead.
warnings.filterwarnings("ignore", module=r"megatron\.")
# A CUDA build of torch tells at import that a machine has a toolkit but no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
