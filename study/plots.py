"""Tables and SVG plots of results/selectors.jsonl, for study/pareto.py. Standard library only; pages need no network."""
import html
import math

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --grid: #d8dde3; --soft: #667080 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --back: #14171b; --grid: #39414b; --soft: #9aa5b1 } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px; margin: 2em auto;
  padding: 0 1em }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .15em .6em; text-align: right; border-bottom: 1px solid var(--grid) }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
svg { font: 12px system-ui, sans-serif } svg text { fill: var(--text) } .grid { stroke: var(--grid) } .note { color: var(--soft) }
"""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 480, 64, 730, 12, 436


def front(rows, x, y):
    """Rows that no other row beats on both."""
    best, result = math.inf, []
    for row in sorted(rows, key=lambda row: (row[x], row[y])):
        if row[y] < best:
            best = row[y]
            result.append(row)
    return result


def colour(number, count):
    return f"hsl({360 * number / max(1, count):.0f} 70% 50%)"


def marker(number, x, y, fill, note):
    """One of four shapes: rules of one selector differ."""
    shapes = ('<circle cx="{x:.1f}" cy="{y:.1f}" r="4"', '<path d="M{x:.1f} {a:.1f} l5 9 h-10 z"',
              '<rect x="{l:.1f}" y="{t:.1f}" width="8" height="8"', '<path d="M{x:.1f} {a:.1f} l5 5 -5 5 -5 -5 z"')
    shape = shapes[number % len(shapes)].format(x=x, y=y, a=y - 5, l=x - 4, t=y - 4)
    outline = ' stroke="currentColor"' if number >= len(shapes) else ""
    return f'{shape} fill="{fill}"{outline}><title>{html.escape(note)}</title></{shape[1:].split()[0]}>\n'


def scatter(rows, x, y, y_label, log_y):
    """A point for each row, coloured by selector, shaped by rule, with the lower-left front as a line."""
    rows = [row for row in rows if row[x] > 0 and (row[y] > 0 or not log_y)]
    if not rows:
        return "<p>No positive values.</p>\n"
    place_y = math.log10 if log_y else float

    def axis(values, low_pixel, high_pixel):
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.1
        return lambda value: low_pixel + (value - low + margin) / (high - low + 2 * margin) * (high_pixel - low_pixel)

    to_x = axis([math.log10(row[x]) for row in rows], LEFT, RIGHT)
    to_y = axis([place_y(row[y]) for row in rows], BOTTOM, TOP)
    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">\n'
    for exponent in range(-5, 3):
        for factor in (1, 2, 5):
            tick = factor * 10.0**exponent
            at = to_x(math.log10(tick))
            if LEFT <= at <= RIGHT:
                text += f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
                text += f'<text x="{at:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick:g}</text>\n'
    if log_y:
        ticks = [factor * 10.0**exponent for exponent in range(-6, 3) for factor in (1, 2, 5)]
    else:
        span = max(row[y] for row in rows) - min(row[y] for row in rows) or 1
        step = 10.0**math.floor(math.log10(span / 3))
        ticks = [step * number for number in range(-100, 200)]
    for tick in ticks:
        at = to_y(place_y(tick))
        if TOP <= at <= BOTTOM:
            text += f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            text += f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.3g}</text>\n'
    text += f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">bytes_ratio</text>\n'
    text += f'<text transform="translate(14 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>\n'
    line = " ".join(f"{to_x(math.log10(row[x])):.1f},{to_y(place_y(row[y])):.1f}" for row in front(rows, x, y))
    text += f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-dasharray="4 4"/>\n'
    selectors, spends = sorted({row["selector"] for row in rows}), sorted({row["spend"] for row in rows})
    for row in rows:
        fill = colour(selectors.index(row["selector"]), len(selectors))
        note = f"{row['policy']}: bytes_ratio {row[x]:.4f}, {y_label} {row[y]:.4f}"
        text += marker(spends.index(row["spend"]), to_x(math.log10(row[x])), to_y(place_y(row[y])), fill, note)
    for number, name in enumerate(selectors):
        text += marker(0, RIGHT + 20, TOP + 8 + 16 * number, colour(number, len(selectors)), name)
        text += f'<text x="{RIGHT + 30}" y="{TOP + 12 + 16 * number}">{html.escape(name)}</text>\n'
    for number, name in enumerate(spends):
        text += marker(number, RIGHT + 180, TOP + 8 + 16 * number, "var(--soft)", name)
        text += f'<text x="{RIGHT + 190}" y="{TOP + 12 + 16 * number}">{html.escape(name)}</text>\n'
    return text + "</svg>\n"


COLUMNS = (("selector", "selector", "{}"), ("spend", "spend", "{}"), ("sparsity", "sparsity", "{:.0f}x"), ("bytes_ratio", "bytes_ratio", "{:.4f}"),
           ("error_p50", "error 50 %", "{:.4f}"), ("error_p95", "95 %", "{:.4f}"), ("exact_error_p50", "exact 50 %", "{:.4f}"),
           ("exact_error_p95", "exact 95 %", "{:.4f}"), ("loss_gap", "loss gap", "{:+.4f}"), ("recall_ratio", "recall", "{:.3f}"))


def sort_rows(rows):
    return sorted(rows, key=lambda row: (round(row["sparsity"]), row["error_p50"]))


def cells(row):
    return [form.format(row[key]) for key, _, form in COLUMNS]


def selector_table(rows):
    """Text: by sparsity, the smallest error first; * marks what no other policy beats in bytes and error."""
    best = {row["policy"] for row in front(rows, "bytes_ratio", "error_p50")}
    table = [[title for _, title, _ in COLUMNS] + [""]] + [cells(row) + ["*" if row["policy"] in best else ""] for row in sort_rows(rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    text = ""
    for line in table:
        text += "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                          for column, (cell, width) in enumerate(zip(line, widths))).rstrip() + "\n"
    return text


def selector_page(rows):
    row = rows[-1]
    body = (f"<p>{html.escape(row['model'])}, {row['split']} split, {row['contexts']} contexts of {row['kv_len']:,} tokens, "
            f"{row['kv_dtype']} cache. Errors are audited: |out - dense| / |dense| of each head on captured data.<br>"
            f"<span class=\"note\">{html.escape(row['device'])}; commit {row['commit']}; {row['date']}<br>"
            f"<code>{html.escape(row['command'])}</code></span></p>\n")
    for key, label, log_y in (("error_p50", "error, audited, median", True), ("error_p95", "error, audited, 95th percentile", True),
                              ("loss_gap", "loss gap to dense, nats per token", False)):
        body += f"<h2>{label}</h2>\n" + scatter(rows, "bytes_ratio", key, label, log_y)
    body += "<h2>All policies</h2>\n<table><tr>" + "".join(f"<th>{title}</th>" for _, title, _ in COLUMNS) + "</tr>\n"
    for one in sort_rows(rows):
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(one)) + "</tr>\n"
    body += "</table>\n"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Selectors</title><style>{STYLE}</style></head>\n'
            f"<body><h1>Selectors and spending rules</h1>\n{body}</body></html>\n")
