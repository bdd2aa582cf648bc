"""From text to datasets: clean it, train tokenizers on it, make it into shards."""
