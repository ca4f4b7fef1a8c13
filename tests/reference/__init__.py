"""Reference implementations in plain NumPy, against which the kernels are tested."""
