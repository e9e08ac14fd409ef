# SPDX-License-Identifier: Apache-2.0
"""The results of `make bench` for readers: a table in Markdown, and a plot of the ratios in SVG."""
import html
import math

from figures import LIMIT

VERDICT_COLOURS = {"better": "#2a7f3f", "worse": "#b3362b", "no difference shown": "#777777"}


def number(value):
    """With three digits that say something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".rstrip("0").rstrip(".")


def _spread(values):
    ordered = sorted(values)
    return f"{number(ordered[0])} / {{}} / {number(ordered[-1])}"


def _target(result):
    if result.target is None:
        return "–"
    return f"{'≥' if result.figure.more_is_better else '≤'} {number(result.target)}: {'met' if result.target_met else 'missed'}"


def _cells(result):
    mine, theirs = (_spread(result.values[side]).format(number(result.medians[side])) for side in ("bulkhead", "qemu"))
    limit = number(result.medians[LIMIT]) if LIMIT in result.medians else "–"
    ratio = "–" if result.ratio is None else f"{result.ratio:.2f}"
    unit = f"{result.figure.unit}{', more is better' if result.figure.more_is_better else ''}"
    return [result.row, result.figure.title, unit, mine, theirs, limit, ratio, result.verdict, _target(result)]


def table(results):
    head = ["row", "what", "unit", "Bulkhead: min / median / max", "QEMU: min / median / max", "limit",
            "Bulkhead's over QEMU's", "verdict", "target"]
    lines = [head, ["---"] * len(head), *map(_cells, results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(x, y, content, anchor="start", colour="#222222"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{html.escape(content)}</text>'


def plot(results, title):
    """A bar for each figure: Bulkhead's median over QEMU's, for rates the other way round, on a logarithmic scale: left of
    the line at 1 Bulkhead is ahead. A dash is the limit's median over QEMU's."""
    shown = [result for result in results if result.ratio]
    left, width, right, line, top = 420, 480, 210, 22, 56
    height = top + line * len(shown) + 40

    def factor(result, median):
        """How many times QEMU's it takes."""
        ratio = median / result.medians["qemu"]
        return 1 / ratio if result.figure.more_is_better else ratio

    def place(value):
        """Four decades and a half, from 1/200 to 200."""
        return left + width * (0.5 + math.log(min(max(value, 1 / 200), 200)) / math.log(200) / 2)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + right}" height="{height}" '
           'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
           _text(10, 20, title), _text(left, 40, "← Bulkhead is ahead"),
           _text(left + width, 40, "QEMU is ahead →", "end")]
    for value in (0.01, 0.1, 0.5, 1, 2, 10, 100):
        x = place(value)
        out.append(f'<line x1="{x:.0f}" y1="{top - 8}" x2="{x:.0f}" y2="{height - 30}" '
                   f'stroke="{"#222222" if value == 1 else "#dddddd"}"/>')
        out.append(_text(x, height - 14, f"{value:g}", "middle"))
    for index, result in enumerate(shown):
        y = top + line * index
        begin, end = sorted((place(1), place(factor(result, result.medians["bulkhead"]))))
        colour = VERDICT_COLOURS[result.verdict]
        out.append(_text(left - 8, y + 14, f"{result.figure.title} ({result.figure.unit})", "end"))
        out.append(f'<rect x="{begin:.1f}" y="{y + 3}" width="{max(end - begin, 1):.1f}" height="{line - 8}" fill="{colour}"/>')
        if result.medians.get(LIMIT):
            x = place(factor(result, result.medians[LIMIT]))
            out.append(f'<line x1="{x:.1f}" y1="{y + 1}" x2="{x:.1f}" y2="{y + line - 3}" stroke="black" stroke-width="2"/>')
        values = f"{number(result.medians['bulkhead'])} to {number(result.medians['qemu'])}: {result.verdict}"
        out.append(_text(left + width + 8, y + 14, values, colour=colour))
    return "\n".join([*out, "</svg>", ""])
