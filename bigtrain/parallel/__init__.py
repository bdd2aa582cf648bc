"""How the work is split: process groups, the joint of Megatron-core and DeepSpeed, and life without a GPU."""
