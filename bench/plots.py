"""Small plots as SVG text: lines over an axis, and bars with their range."""

from __future__ import annotations

import math
from html import escape

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLOURS = ("#1f5fa8", "#c2571a", "#3c7d3c", "#7a4a9c")


class Axis:
    """Where values go between two places, and which ones are written beside it."""

    def __init__(self, values: list[float], start: float, end: float, log: bool) -> None:
        self.log = log
        self.start, self.end = start, end
        if log:
            positive = [value for value in values if value > 0] or [1.0]
            self.low = 10 ** math.floor(math.log10(min(positive)))
            self.high = 10 ** math.ceil(math.log10(max(max(positive), self.low * 10)))
        else:
            self.low, self.high = 0.0, max([*values, 1e-9]) * 1.05

    def at(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            share = math.log10(value / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        step = 10 ** math.floor(math.log10(self.high))
        for part in (0.2, 0.5, 1.0):
            if self.high / (step * part) <= 6:
                step *= part
                break
        return [step * number for number in range(int(self.high / step) + 1)]


def label(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:.3g}"


def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        ' stroke-width="1"/>'
    )


def picture(title: str, parts: list[str], height: int = HEIGHT) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
            f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            text(WIDTH / 2, 20, title, more=' font-size="14"'),
            *parts,
            "</svg>\n",
        ]
    )


def lines(
    title: str, across: str, up: str, found: dict[str, Points], *, log_x: bool, log_y: bool
) -> str:
    """One line of points for each label."""
    every = [point for points in found.values() for point in points]
    x = Axis([p[0] for p in every], LEFT, WIDTH - RIGHT, log_x)
    y = Axis([p[1] for p in every], HEIGHT - BOTTOM, TOP, log_y)
    parts = []
    for value in x.ticks():
        parts.append(line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM))
        parts.append(text(x.at(value), HEIGHT - BOTTOM + 15, label(value)))
    for value in y.ticks():
        parts.append(line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value)))
        parts.append(text(LEFT - 6, y.at(value) + 4, label(value), "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across))
    turned = f' transform="rotate(-90 16 {HEIGHT / 2})"'
    parts.append(text(16, HEIGHT / 2, up, more=turned))
    for number, (name, points) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.5" fill="{colour}"/>'
            for a, b in points
        ]
        if len(found) > 1:
            place = TOP + 8 + 15 * number
            parts.append(text(LEFT + 10, place, name, "start", f' fill="{colour}"'))
    return picture(title, parts)


def bars(title: str, found: dict[str, tuple[float, float, float]]) -> str:
    """A bar for each label: middle, and a stroke from the lowest to the highest."""
    height = TOP + 26 * len(found) + BOTTOM
    left = 170
    x = Axis([1.0, *(high for _, _, high in found.values())], left, WIDTH - RIGHT, log=False)
    bottom = height - BOTTOM
    parts = []
    for value in x.ticks():
        parts.append(line(x.at(value), TOP, x.at(value), bottom))
        parts.append(text(x.at(value), bottom + 15, label(value)))
    for number, (name, (middle, low, high)) in enumerate(found.items()):
        top = TOP + 26 * number
        parts.append(
            f'<rect x="{left}" y="{top + 5}" width="{x.at(middle) - left:.1f}" height="14"'
            f' fill="{COLOURS[0]}" opacity="0.75"/>'
        )
        parts.append(line(x.at(low), top + 12, x.at(high), top + 12, "#111"))
        parts.append(text(left - 6, top + 16, f"{name} {middle:.3f}", "end"))
    parts.append(line(x.at(1.0), TOP, x.at(1.0), bottom, "#c2571a"))
    return picture(title, parts, height)
