"""The values of an index that lies on the CPU."""

from torch import Tensor


def check_values(index: Tensor | None, target: Tensor) -> None:
    """Raise the error of `outside` if a value is not in [0, N). On other devices a look would stop the stream."""
    if index is None or index.device.type != "cpu" or index.numel() == 0:
        return
    lowest, highest = index.aminmax()
    if lowest < 0 or highest >= target.shape[1]:
        bad = (index < 0) | (index >= target.shape[1])
        raise outside(index, int(bad.flatten().nonzero()[0]), target)


def outside(index: Tensor, position: int, target: Tensor) -> ValueError:
    """The error that names the value at flat `position`."""
    row, column = divmod(position, index.shape[1])
    return ValueError(
        f"index: expected int64 [B, K] with values in [0, {target.shape[1]}), "
        f"got {int(index[row, column])} at [{row}, {column}]"
    )
