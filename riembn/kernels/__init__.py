"""Fused row updates: compiled on first use, never required."""
