"""A room of the code-generation tests: small kernels whose machine code is known beforehand."""
