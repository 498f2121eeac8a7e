"""Find which kernels each category depends on, and what caused each error."""
