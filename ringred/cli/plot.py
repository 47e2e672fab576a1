"""Curves on two logarithmic axes: an SVG of our own, which needs nothing, or a PNG through matplotlib.

The colours are told apart by people who see no difference of red and green, and every curve has its name at its end.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.sax.saxutils import escape

from ringred.errors import UsageError

Curves = dict[str, list[tuple[int, float]]]

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito
WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 40, 50
LINE = 14  # pixels from one name to the next


def check(path: Path) -> None:
    """Refuse a file that could not be written: its ending, its folder, a missing matplotlib."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"A plot is a .svg or a .png file: got {str(path)!r}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"A plot goes into a folder that exists: there is no {str(path.absolute().parent)!r}.")
    if path.suffix == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UsageError(
                "A .png plot needs the package matplotlib: install it with pip install matplotlib, or write a .svg."
            ) from None


def write(path: Path, title: str, x_name: str, y_name: str, curves: Curves) -> None:
    """Write the curves, (x, y) by name, all above 0, to a file that `check` accepts."""
    if path.suffix == ".png":
        write_png(path, title, x_name, y_name, curves)
    else:
        path.write_text(svg(title, x_name, y_name, curves))


def write_png(path: Path, title: str, x_name: str, y_name: str, curves: Curves) -> None:
    """Through matplotlib, without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_name, ylabel=y_name)
    for number, (name, points) in enumerate(curves.items()):
        axes.loglog(*zip(*points, strict=True), marker=".", label=name, color=COLOURS[number % len(COLOURS)])
    axes.set_xscale("log", base=2)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path)


class Axis:
    """A logarithmic axis: values from `low` to `high` on the pixels from `start` to `end`."""

    def __init__(self, values: list[float], base: int, start: float, end: float) -> None:
        self.base = base
        self.low = math.floor(math.log(min(values), base) + 1e-9)
        self.high = max(math.ceil(math.log(max(values), base) - 1e-9), self.low + 1)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        part = (math.log(value, self.base) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """The powers of the base."""
        return [float(self.base) ** power for power in range(self.low, self.high + 1)]


def svg(title: str, x_name: str, y_name: str, curves: Curves) -> str:
    """The text of an SVG file."""
    points = [point for curve in curves.values() for point in curve]
    across = Axis([float(x) for x, _ in points], 2, LEFT, WIDTH - RIGHT)
    up = Axis([y for _, y in points], 10, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        label(title, WIDTH / 2, TOP / 2, "middle", 'font-size="13"'),
        *grid(across, up),
        label(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "middle"),
        label(y_name, LEFT, TOP - 8, "end"),
    ]
    heights = spread({name: up(curve[-1][1]) for name, curve in curves.items()})
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(label(name, WIDTH - RIGHT + 8, heights[name] + 4, "start", f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>", ""])


def grid(across: Axis, up: Axis) -> list[str]:
    """A thin line and a number for every power."""
    lines = []
    for x in across.ticks():
        lines.append(line(across(x), up.start, across(x), up.end))
        lines.append(label(f"{x:g}" if x < 1e5 else f"{x:.0e}", across(x), up.start + 16, "middle"))
    for y in up.ticks():
        lines.append(line(across.start, up(y), across.end, up(y)))
        lines.append(label(f"{y:g}", across.start - 6, up(y) + 4, "end"))
    return lines


def line(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line of the grid."""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#dddddd"/>'


def label(text: str, x: float, y: float, anchor: str, more: str = "") -> str:
    """A word at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def spread(heights: dict[str, float]) -> dict[str, float]:
    """The same heights, moved down where two are closer than a line."""
    moved: dict[str, float] = {}
    previous = -math.inf
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        previous = moved[name] = max(height, previous + LINE)
    return moved
