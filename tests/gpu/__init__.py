"""Only where there is a GPU."""
