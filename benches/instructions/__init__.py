"""Instruction counts of small kernels, which noise does not disturb.

``python -m benches.instructions`` builds them, counts the instructions of each by callgrind and
compares the counts with those in ``counts.json``: more than 2 % up or down is an error, so that
an improvement is recorded too. ``--write`` records them. Counts are those of AVX2, which valgrind
can run, and of one version of rustc: without valgrind, or with another rustc, nothing is compared,
which is said.
"""
