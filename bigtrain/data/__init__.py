"""What training reads: tokens on disk, and which of them a step gets.

`shards` is a dataset on disk and in memory; `order` is the pseudo-random order in which it is read; `samples` cuts
windows out of it by position; `objectives` makes these into other tasks; `loader` makes them into the tensors of one
training step; `tokenizer` turns text into ids and back, and `ranks` reads tiktoken's files for it. `bigtrain.prepare`
makes datasets.

Only `loader` imports torch: the launcher checks data before it starts any process.
"""
