"""Checkpoints that know nothing of the layout: global tensors in torch's distributed checkpoint format."""
