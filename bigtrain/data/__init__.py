"""Text in, batches out.

`prepare` reads text and writes a dataset; `shards` is that dataset on disk and in memory; `order` is
the pseudo-random order in which it is read; `samples` cuts windows out of it by position; `loader`
makes them into the tensors of one training step; `tokenizer` turns text into ids and back.

Only `loader` imports torch: preparing data, and the worker processes it starts, must not wait for it.
"""
