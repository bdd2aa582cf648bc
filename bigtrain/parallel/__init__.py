"""How the work is split: process groups, the joint of Megatron-core and DeepSpeed, and life without a GPU."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed looks for its accelerator when it is imported, and warns on the terminal unless it is told.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
