"""Hostile checkpoints, one a script; see README.md."""
