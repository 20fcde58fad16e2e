"""Draws docs/attention_masks.png: the block structure of every mask, read from the masks' own lists.

python -m jepa_fast.bench.report.attention_masks docs/attention_masks.png
"""

import sys

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jepa_fast import BlockCausal, BlockSparse, Varlen
from jepa_fast.bench.report.figures import STYLE
from jepa_fast.kernels.attention.masks import Mask

BLOCK = (32, 32)
EMPTY, PARTIAL, FULL = "#f1f3f7", "#9db8ef", "#1a56db"


def draw() -> Figure:
    """Every pair of tokens by what its block is; `Varlen` and `BlockCausal` are cut into blocks as `BlockSparse` is."""
    # The window's first 32 tokens are seen by all, and 32 of its tokens see nothing.
    distance = (torch.arange(256)[:, None] - torch.arange(256)[None, :]).abs()
    window = (distance < 40) | (torch.arange(256) < 32)
    window[160:192] = False
    examples: list[tuple[str, Mask, int]] = [
        ("Varlen: 70, 42, 99, 45 tokens", Varlen.from_lengths([70, 42, 99, 45]), 256),
        ("BlockCausal: steps of 52 tokens", BlockCausal(52), 260),
        (
            "BlockSparse: a window and more",
            BlockSparse.from_dense(window, BLOCK),
            256,
        ),
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        for axes, (title, mask, tokens) in zip(figure.subplots(1, len(examples)), examples, strict=True):
            _draw_mask(axes, mask, tokens)
            axes.set(title=title, xlabel="keys")
        figure.axes[0].set_ylabel("queries")
        kinds = [Patch(color=FULL, label="full block"), Patch(color=PARTIAL, label="partial block")]
        empty = Patch(facecolor=EMPTY, edgecolor="#c3c9d4", label="not visited")
        hidden = Patch(facecolor="white", edgecolor="#c3c9d4", label="hidden pair of a partial block")
        figure.legend(handles=[*kinds, hidden, empty], loc="outside lower center", ncols=4)
    return figure


def _draw_mask(axes: Axes, mask: Mask, tokens: int) -> None:
    dense = mask.dense(tokens, tokens, torch.device("cpu")).reshape(-1, tokens, tokens)[0]
    blocks = mask if isinstance(mask, BlockSparse) else BlockSparse.from_dense(dense, BLOCK)
    block_q, block_k = blocks.block_size
    picture = torch.zeros(tokens, tokens)  # 0 not visited, 1 hidden, 2 partial, 3 full
    for row in range(blocks.blocks[0]):
        rows = slice(row * block_q, (row + 1) * block_q)
        for offsets, keys, shade in (
            (blocks.partial_offsets, blocks.partial_keys, 2.0),
            (blocks.full_offsets, blocks.full_keys, 3.0),
        ):
            for key in keys[offsets[row] : offsets[row + 1]].tolist():
                columns = slice(key * block_k, (key + 1) * block_k)
                picture[rows, columns] = torch.where(dense[rows, columns], shade, 1.0)
    axes.imshow(picture, cmap=ListedColormap([EMPTY, "white", PARTIAL, FULL]), vmin=0, vmax=3)
    ticks = range(0, tokens + 1, block_q)
    axes.set(xticks=[t - 0.5 for t in ticks], yticks=[t - 0.5 for t in ticks])
    axes.set_xticklabels([str(t) if t % (2 * block_k) == 0 else "" for t in ticks])
    axes.set_yticklabels([str(t) if t % (2 * block_q) == 0 else "" for t in ticks])
    axes.grid(color="#c3c9d4", linewidth=0.5)


if __name__ == "__main__":
    draw().savefig(sys.argv[1], dpi=110)
