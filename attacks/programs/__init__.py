"""Hostile programs, one a script; see README.md of `attacks`."""
