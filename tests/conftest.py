import os

import torch

# Without a GPU, Triton kernels run through its interpreter, which has to be chosen before Triton is imported.
# Children that compile kernels for real drop the variable themselves.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
