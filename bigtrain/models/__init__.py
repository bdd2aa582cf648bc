"""Models out of Megatron-core's parts, and what their configuration alone tells (`size`)."""
