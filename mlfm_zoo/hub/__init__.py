"""Checkpoints: the manifest that lists them, and loading that verifies them."""
