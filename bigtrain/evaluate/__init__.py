"""What a model can do: text continued by it."""
