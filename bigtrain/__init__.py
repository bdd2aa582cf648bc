"""BigTrain: pretrain language models with Megatron-core, DeepSpeed ZeRO and Arrow shards."""

__version__ = "0.1.0"
