"""Tables and pages: what a reader sees, and that a page loads nothing from elsewhere."""

import base64
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from jepa_fast.bench.measure import Row, Times, fingerprint
from jepa_fast.bench.measure.agreement import agreement
from jepa_fast.bench.measure.training import Curve
from jepa_fast.bench.report import figures
from jepa_fast.bench.report.columns import COLUMNS, HOST_COLUMNS, duration, memory, stacked, three_digits
from jepa_fast.bench.report.demo_page import DemoResults, Pictures, Training, demo_page
from jepa_fast.bench.report.terminal import tables


def timed_row(**changes: object) -> Row:
    values = {
        "suite": "ema",
        "op": "ema_update_",
        "shape": "ViT-B/16 encoder",
        "dtype": "float32",
        "device": "cpu",
        "implementation": "native",
        "baseline": "I-JEPA loop",
        "time": Times(0.02, 0.019, 0.03, 40),
        "baseline_time": Times(0.05, 0.049, 0.08, 40),
        "ratio": 2.5,
        "ratio_low": 2.4,
        "ratio_high": 2.6,
        "noise_floor": 1.012,
        "verdict": "faster",
        "peak_bytes": 0,
        "baseline_peak_bytes": 2**20,
        "error_ratio": 0.97,
    }
    return Row(**{**values, **changes})


HOST_ROW = timed_row(
    suite="host_cost", ratio=None, ratio_low=None, ratio_high=None, verdict=None, host_overhead_us=4.23
)
FAILED_ROW = Row(
    suite="ema", op="ema_update_", shape="tiny", dtype="float32", device="cpu", reason="no <b>library</b>"
)


def page(**changes: object) -> str:
    losses = [0.5, 0.4, 0.3]
    curve = Curve(losses, [0.1] * 3)
    trainings = [
        Training(precision, curve, curve, agreement(losses, [losses], losses), timed_row(dtype=precision))
        for precision in ("float32", "bfloat16")
    ]
    context, target = torch.arange(4), torch.tensor([5, 6, 9, 10])
    values = {
        "setting": "A model was trained.",
        "trainings": trainings,
        "rows": [timed_row(), FAILED_ROW, HOST_ROW],
        "pictures": Pictures(
            frames=torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8),
            contexts=[context] * 2,
            targets=[[target] * 4] * 2,
            features=torch.randn(5, 16, 8),
            patch_size=8,
        ),
        "machine": fingerprint(),
    }
    return demo_page(DemoResults(**{**values, **changes}))


class References(HTMLParser):
    """Every address in an attribute that makes a browser load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")
        ]


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = page()
    parser = References()
    parser.feed(text)
    assert len(parser.found) >= 6  # the figures
    assert all(address.startswith("data:image/") for address in parser.found)
    assert not parser.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in text
    assert "@import" not in text
    for address in parser.found:
        kind, _, content = address.partition(";base64,")
        if kind == "data:image/svg+xml":
            svg = base64.b64decode(content).decode()
            assert not re.search(r'(?:src|href)="(?!#)', svg)
            assert "url(http" not in svg


def test_the_page_shows_figures_rows_and_definitions() -> None:
    text = page()
    assert "The losses agree at every step." in text
    assert "2.50x\n[2.40, 2.60]" in text
    assert "4.2 us" in text
    for column in (*COLUMNS, *HOST_COLUMNS):
        assert f"<dt>{column.heading}</dt>" in text
    assert "no &lt;b&gt;library&lt;/b&gt;" in text  # nothing that a row holds is taken for markup


def test_the_page_says_so_where_curves_disagree() -> None:
    losses = [0.5, 0.4, 0.3]
    curve = Curve(losses, [0.1] * 3)
    wrong = Training("float32", curve, curve, agreement([0.5, 0.4, math.nan], [losses], losses), timed_row())
    text = page(trainings=[wrong])
    assert "The losses do not agree." in text
    assert "disagree" in text


@pytest.mark.parametrize("width", [80, 110, 160, 200])
def test_terminal_tables_hold_every_row(width: int) -> None:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as capture:
        for table in tables([timed_row(), FAILED_ROW, HOST_ROW], width):
            console.print(table)
    text = capture.get()
    assert "2.50x" in text
    assert "1.2%" in text
    assert "4.2 us" in text
    assert "library" in text


def test_stacks_hold_every_column_once() -> None:
    for columns in (COLUMNS, HOST_COLUMNS):
        headings = [column.heading for stack in stacked(columns) for column in stack]
        assert sorted(headings) == sorted(column.heading for column in columns)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1234"), (0.001234, "0.00123")],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_units() -> None:
    assert [duration(seconds) for seconds in (2.5, 0.0123, 4.5e-6)] == ["2.50 s", "12.3 ms", "4.50 us"]
    assert [memory(size) for size in (0, 3 * 2**20)] == ["0", "3.00 MiB"]


def test_principal_colors_show_content_and_not_position() -> None:
    random = torch.Generator().manual_seed(0)
    content = torch.randint(2, (6, 16), generator=random).float()  # two kinds of patch
    position = torch.randn(16, 12, generator=random) * 10
    direction = torch.randn(12, generator=random)
    colors = figures.principal_colors(position + content[..., None] * direction).flatten(1, 2)
    assert colors.min() >= 0
    assert colors.max() <= 1
    for place in range(16):  # at one place, the first component tells the kinds apart
        kinds = [colors[content[:, place] == kind, place, 0] for kind in (0, 1)]
        if all(map(len, kinds)):
            assert max(k.max() - k.min() for k in kinds) < 1e-4
            assert (kinds[0].mean() - kinds[1].mean()).abs() > 0.2
