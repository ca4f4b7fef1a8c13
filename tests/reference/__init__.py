"""Plain NumPy, written to be read: what the kernels are compared with."""
