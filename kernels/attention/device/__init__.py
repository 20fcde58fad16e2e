"""Device functions of the Triton kernels. Imported where Triton can run; nothing here is launched by itself."""
