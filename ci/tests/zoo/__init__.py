"""Networks whose scale-invariant weights were worked out by hand."""
