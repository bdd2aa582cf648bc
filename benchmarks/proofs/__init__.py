"""A proof on real data each: what it prepares, the commands it runs, and the table it makes. See `results.py`."""
