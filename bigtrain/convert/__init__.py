"""Models out to Hugging Face: the maps as data, the writing, and the proof that nothing changed."""
