"""Pretraining: the loop, its schedule, its metrics, its ways to stop."""
