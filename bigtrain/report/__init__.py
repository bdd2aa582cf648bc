"""What a run did: its loss curve, its figures, a page to keep."""
