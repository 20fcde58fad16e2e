"""Integer arguments of the kernels, which change from call to call: no kernel is compiled for their values."""

RUNTIME = (
    *(
        f"stride_{tensor}_{axis}"
        for tensor in ("query", "key", "value", "grad")
        for axis in ("sample", "token", "head")
    ),
    *("heads_q", "group", "length_q", "length_k", "sample_q", "sample_k", "rope_sample_q", "rope_sample_k"),
    *("tiles_own", "mask_0", "mask_1", "mask_2", "mask_3"),
)
