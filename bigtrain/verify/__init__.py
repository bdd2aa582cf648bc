"""Proof for a user's own configuration: that the layout changes nothing, and that nothing leaks."""
