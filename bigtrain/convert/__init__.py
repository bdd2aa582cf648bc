"""Models out to Hugging Face: the maps as data, the writing, and the proof that nothing changed."""

from bigtrain.parallel import compat

compat.install()  # before what reads checkpoints brings in Megatron-core and DeepSpeed
