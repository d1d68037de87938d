"""Chart data in, plotly figures out, as the plain JSON values that plotly.js reads.

Nothing is computed but units and colours. Names from a run are escaped, because plotly reads a
small HTML in every label.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from memplan.report.series import (
    ArrivalRate,
    BarPanel,
    Chart,
    KvTimeline,
    Ladder,
    LadderPoint,
    LengthCurves,
    MemoryAgainstLatency,
    MemoryTimeline,
    PeakParts,
    PercentileBars,
    StackWaterfall,
    StateCurves,
    VariantFront,
    VariantPoint,
)
from memplan.stats.summary import Quantile
from memplan.units import GIB, MIB, bytes_text

Figure = dict[str, Any]
"""``data`` and ``layout``; the shape is plotly.js's, which no type here could narrow."""

INK, MUTED, GRID, SHADE = "#1f2933", "#66707a", "#e6e9ec", "#f1f3f5"
ACCENT, PEAK = "#1f5a8c", "#b3402e"
# Told apart by people who do not see red or green, and in grey on paper.
CLASS_COLOURS = ("#1f5a8c", "#e0912f", "#3f8f74", "#8c5a9e", "#8a8f94", "#c2605a", "#5aa7c7")
PART_COLOURS = ("#274c6b", "#5c8bb0", "#a9c4d9", "#e0912f", "#f0c48a", "#b9bec3", "#b3402e")
QUANTILE_COLOURS = ("#a9c4d9", "#5c8bb0", "#1f4a70")
FONT = "Inter, 'Segoe UI', system-ui, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


def figure_of(chart: Chart) -> Figure:
    match chart:
        case MemoryTimeline():
            return _timeline(chart)
        case KvTimeline():
            return _kv_timeline(chart)
        case PeakParts():
            return _parts(chart)
        case MemoryAgainstLatency():
            return _scatter(chart)
        case PercentileBars():
            return _bars(chart)
        case Ladder():
            return _ladder(chart)
        case StackWaterfall():
            return _waterfall(chart)
        case VariantFront():
            return _front(chart)
        case StateCurves():
            return _curves(chart)
        case ArrivalRate():
            return _arrivals(chart)
        case LengthCurves():
            return _lengths(chart)


def _timeline(chart: MemoryTimeline) -> Figure:
    peaks = list(chart.peak_bytes)
    known = [*(peak for peak in peaks if peak is not None), *chart.sample_bytes]
    unit, name = _unit(max(known, default=0))
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "lines", "name": "exact peak of each segment",
            "x": [*_rounded(chart.start_s), round(chart.end_s, 3)],
            "y": _scaled([*peaks, *peaks[-1:]], unit),
            "line": {"shape": "hv", "color": PEAK, "width": 1.6},
        },
        {
            "type": "scatter", "mode": "lines", "name": chart.sample_name,
            "x": _rounded(chart.sample_s), "y": _scaled(chart.sample_bytes, unit),
            "line": {"color": ACCENT, "width": 1},
        },
    ]  # fmt: skip
    if chart.idle_bytes is not None:
        ends = [chart.start_s[0] if chart.start_s else 0.0, chart.end_s]
        data.append(
            {
                "type": "scatter", "mode": "lines",
                "name": f"idle, {bytes_text(chart.idle_bytes)}",
                "x": ends, "y": _scaled([chart.idle_bytes] * 2, unit),
                "line": {"color": MUTED, "width": 1, "dash": "dash"},
            }
        )  # fmt: skip
    for at, (class_name, counts) in enumerate(chart.in_flight):
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": f"{_safe(class_name)} in flight",
                "x": [*_rounded(chart.start_s), round(chart.end_s, 3)],
                "y": [*counts, *counts[-1:]],
                "yaxis": "y2", "stackgroup": "in flight", "fillcolor": _colour(at),
                "line": {"shape": "hv", "width": 0, "color": _colour(at)},
            }
        )  # fmt: skip
    shaded = [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": start_s, "x1": end_s,
            "y0": 0, "y1": 1, "fillcolor": SHADE, "line": {"width": 0}, "layer": "below",
        }
        for start_s, end_s in chart.setup_end_s
    ]  # fmt: skip
    layout = _layout(
        height=430,
        xaxis={**_axis("seconds of the run"), "anchor": "y2"},
        yaxis={**_axis(name), "domain": [0.34, 1], "rangemode": "tozero"},
        yaxis2={**_axis("requests"), "domain": [0, 0.24], "rangemode": "tozero"},
        shapes=shaded,
        annotations=_peak_label(chart, unit),
        hovermode="x unified",
    )
    return {"data": data, "layout": layout}


def _kv_timeline(chart: KvTimeline) -> Figure:
    sums = [sum(column) for column in zip(*(values for _, values in chart.layers), strict=True)]
    unit, name = _unit(max([*sums, *chart.offloaded_bytes]))
    steps = [*_rounded(chart.start_s), round(chart.end_s, 3)]
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "lines", "name": layer, "stackgroup": "pool",
            "x": steps, "y": _scaled([*values, *values[-1:]], unit), "fillcolor": _colour(at),
            "line": {"shape": "hv", "width": 0, "color": _colour(at)},
        }
        for at, (layer, values) in enumerate(chart.layers)
    ]  # fmt: skip
    if chart.offloaded_bytes:
        values = chart.offloaded_bytes
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "in the offload tier",
                "x": steps, "y": _scaled([*values, *values[-1:]], unit),
                "line": {"shape": "hv", "color": INK, "width": 1.4, "dash": "dash"},
            }
        )  # fmt: skip
    layout = _layout(
        height=300,
        xaxis=_axis("seconds of the run"),
        yaxis={**_axis(name), "rangemode": "tozero"},
        hovermode="x unified",
    )
    return {"data": data, "layout": layout}


def _peak_label(chart: MemoryTimeline, unit: float) -> list[Figure]:
    known = [(peak, at) for at, peak in enumerate(chart.peak_bytes) if peak is not None]
    if not known:
        return []
    peak, at = max(known)
    return [
        {
            "text": f"peak {bytes_text(peak)}", "x": round(chart.start_s[at], 3),
            "y": round(peak / unit, 4), "showarrow": True, "arrowhead": 0, "arrowwidth": 1,
            "arrowcolor": PEAK, "ax": 44, "ay": -14, "font": {"size": 12, "color": PEAK},
            "xanchor": "left",
        }
    ]  # fmt: skip


def _parts(chart: PeakParts) -> Figure:
    total = sum(value for _, value in chart.parts)
    unit, name = _unit(total)
    data = [
        {
            "type": "bar", "orientation": "h", "y": [""], "x": _scaled([value], unit),
            "name": f"{part} {bytes_text(value)}", "text": [part], "textposition": "inside",
            "insidetextanchor": "middle", "textangle": 0, "marker": {"color": PART_COLOURS[at]},
            "hovertemplate": f"{part}: {bytes_text(value)}<extra></extra>",
        }
        for at, (part, value) in enumerate(chart.parts)
    ]  # fmt: skip
    layout = _layout(
        height=210,
        barmode="relative",
        xaxis=_axis(name),
        yaxis={"showticklabels": False, "fixedrange": True},
        uniformtext={"minsize": 10, "mode": "hide"},
    )
    return {"data": data, "layout": layout}


def _scatter(chart: MemoryAgainstLatency) -> Figure:
    unit, name = _unit(max(point.owned_bytes for point in chart.points))
    data = []
    for at, class_name in enumerate(chart.class_names):
        points = [point for point in chart.points if point.class_name == class_name]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": _safe(class_name),
                "x": _rounded([point.latency_s for point in points]),
                "y": _scaled([point.owned_bytes for point in points], unit),
                "text": [_safe(point.request_id) for point in points],
                "marker": {
                    "size": 8, "color": _colour(at), "opacity": 0.8,
                    "symbol": ("circle", "square", "diamond", "cross", "x")[at % 5],
                },
                "hovertemplate": "%{text}: %{y:.2f} " + name + ", %{x:.2f} s<extra></extra>",
            }
        )  # fmt: skip
    layout = _layout(
        height=360,
        xaxis={**_axis("end to end, s"), "rangemode": "tozero"},
        yaxis={**_axis(f"owned by the request, {name}"), "rangemode": "tozero"},
    )
    return {"data": data, "layout": layout}


def _bars(chart: PercentileBars) -> Figure:
    data: list[Figure] = []
    axes: Figure = {"annotations": []}
    count = len(chart.panels)
    for at, panel in enumerate(chart.panels):
        suffix = "" if at == 0 else str(at + 1)
        unit, unit_name = _panel_unit(panel)
        left, right = at / count + 0.04 * bool(at), (at + 1) / count - 0.04 * (at + 1 < count)
        axes[f"xaxis{suffix}"] = {**_axis(""), "domain": [left, right], "anchor": f"y{suffix}"}
        axes[f"yaxis{suffix}"] = {
            **_axis(unit_name), "anchor": f"x{suffix}", "rangemode": "tozero",
        }  # fmt: skip
        axes["annotations"].append(_heading(panel.title, left))
        data.extend(_bar_traces(panel, suffix, unit))
    layout = _layout(height=350, barmode="group", bargap=0.3, **axes)
    layout["margin"]["t"] = 78
    layout["legend"]["y"] = 1.14
    return {"data": data, "layout": layout}


def _bar_traces(panel: BarPanel, suffix: str, unit: float) -> list[Figure]:
    labels = ("p50", "p95", "p99")
    columns = [(one.p50, one.p95, one.p99) for _, one in panel.groups]
    return [
        {
            "type": "bar", "name": label, "legendgroup": label, "showlegend": suffix == "",
            "x": [_safe(name) for name, _ in panel.groups],
            "y": _scaled([column[at].value for column in columns], unit),
            "xaxis": f"x{suffix}", "yaxis": f"y{suffix}",
            "marker": {"color": QUANTILE_COLOURS[at]},
            "error_y": {
                "type": "data", "symmetric": False, "color": INK, "thickness": 1, "width": 3,
                "array": _scaled([_above(column[at]) for column in columns], unit),
                "arrayminus": _scaled([_below(column[at]) for column in columns], unit),
            },
        }
        for at, label in enumerate(labels)
    ]  # fmt: skip


def _above(quantile: Quantile) -> float | None:
    if quantile.value is None or quantile.high is None:
        return None
    return quantile.high - quantile.value


def _below(quantile: Quantile) -> float | None:
    if quantile.value is None or quantile.low is None:
        return None
    return quantile.value - quantile.low


def _panel_unit(panel: BarPanel) -> tuple[float, str]:
    if panel.unit == "s":
        return 1.0, "s"
    values = [one.peak for _, one in panel.groups if one.peak is not None]
    return _unit(max(values, default=0))


def _ladder(chart: Ladder) -> Figure:
    every = [point for _, points in chart.runs for point in points]
    unit, name = _unit(max(max(point.measured_bytes, point.kv_bytes) for point in every))
    data = [
        trace
        for at, (variant, points) in enumerate(chart.runs)
        for trace in _ladder_traces(variant, points, _colour(at), unit)
    ]
    layout = _layout(
        height=340,
        xaxis={**_axis(chart.x_title), "rangemode": "tozero"},
        yaxis={**_axis(f"over idle, {name}"), "rangemode": "tozero"},
    )
    return {"data": data, "layout": layout}


def _ladder_traces(
    variant: str, points: Sequence[LadderPoint], colour: str, unit: float
) -> tuple[Figure, Figure]:
    steps = [point.x for point in points]
    measured: Figure = {
        "type": "scatter", "mode": "markers+lines", "name": f"{_safe(variant)}, measured",
        "x": steps, "y": _scaled([point.measured_bytes for point in points], unit),
        "marker": {"size": 8, "color": colour}, "line": {"width": 1, "color": colour},
    }  # fmt: skip
    formula: Figure = {
        "type": "scatter", "mode": "lines", "name": f"{_safe(variant)}, KV formula",
        "x": steps, "y": _scaled([point.kv_bytes for point in points], unit),
        "line": {"width": 1.5, "dash": "dash", "color": colour},
    }  # fmt: skip
    return measured, formula


def _waterfall(chart: StackWaterfall) -> Figure:
    bars = chart.bars
    unit, name = _unit(max(bar.peak_bytes for bar in bars))
    names = [_safe(bar.name) for bar in bars]
    heights = [bar.peak_bytes if bar.change_bytes is None else bar.change_bytes for bar in bars]
    data: list[Figure] = [
        {
            "type": "waterfall", "name": "peak, measured at each step", "x": names,
            "measure": ["absolute" if b.change_bytes is None else "relative" for b in bars],
            "y": _scaled(heights, unit),
            "text": [_change_text(bar.peak_bytes, bar.change_bytes) for bar in bars],
            "textposition": "outside", "cliponaxis": False,
            "hovertext": [f"peak {bytes_text(bar.peak_bytes)}" for bar in bars],
            "hoverinfo": "x+text",
            "totals": {"marker": {"color": ACCENT}},
            "increasing": {"marker": {"color": PEAK}},
            "decreasing": {"marker": {"color": CLASS_COLOURS[2]}},
            "connector": {"line": {"color": MUTED, "width": 1, "dash": "dot"}},
        },
        {
            "type": "scatter", "mode": "markers", "name": "idle, measured at each step",
            "x": names, "y": _scaled([bar.idle_bytes for bar in bars], unit),
            "marker": {"size": 9, "color": INK, "symbol": "line-ew-open", "line": {"width": 2}},
        },
    ]  # fmt: skip
    layout = _layout(
        height=360,
        xaxis={**_axis(""), "type": "category"},
        yaxis={**_axis(name), "rangemode": "tozero"},
    )
    return {"data": data, "layout": layout}


def _change_text(peak_bytes: float, change_bytes: float | None) -> str:
    if change_bytes is None:
        return bytes_text(peak_bytes)
    sign = "−" if change_bytes < 0 else "+" if change_bytes > 0 else ""
    return f"{sign}{bytes_text(abs(change_bytes))}"


def _front(chart: VariantFront) -> Figure:
    unit, name = _unit(max(point.peak_bytes for point in chart.points))
    scale, second = (1e3, "ms") if max(p.latency_s for p in chart.points) < 1 else (1.0, "s")
    data = [
        _front_trace([p for p in chart.points if p.is_on_front], "no other beats it", ACCENT, unit),
        _front_trace([p for p in chart.points if not p.is_on_front], "beaten", MUTED, unit),
    ]
    for trace in data:
        trace["x"] = [round(x_s * scale, 4) for x_s in trace["x"]]
    layout = _layout(
        height=400,
        xaxis={**_axis(f"{chart.x_title}, {second}"), "rangemode": "tozero"},
        yaxis={**_axis(f"peak, {name}"), "rangemode": "tozero"},
    )
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def _curves(chart: StateCurves) -> Figure:
    data: list[Figure] = []
    layout = _layout(320, annotations=[])
    width = 1 / len(chart.panels)
    for at, (name, reference, reached) in enumerate(chart.panels):
        suffix = "" if at == 0 else str(at + 1)
        for whose, values, colour, dash in (
            ("reference", reference, INK, "dash"),
            ("reached", reached, ACCENT, "solid"),
        ):
            data.append({
                "type": "scatter", "mode": "lines", "name": whose, "legendgroup": whose,
                "showlegend": at == 0, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}",
                "x": [float(f"{value:.6g}") for value in values],
                "y": [round((rank + 1) / len(values) * 100, 2) for rank in range(len(values))],
                "line": {"shape": "vh", "color": colour, "width": 1.6, "dash": dash},
                "hovertemplate": "%{y:.1f} % of the time at most %{x:,.4~f}<extra></extra>",
            })  # fmt: skip
        left = at * width
        layout[f"xaxis{suffix}"] = {
            **_axis(name), "domain": [left + 0.06, left + width - 0.03], "anchor": f"y{suffix}",
            "rangemode": "tozero",
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            **_axis("% of the time" if at == 0 else ""), "anchor": f"x{suffix}", "range": [0, 101],
        }  # fmt: skip
    return {"data": data, "layout": layout}


def _arrivals(chart: ArrivalRate) -> Figure:
    unit, name = next(
        (seconds, name)
        for seconds, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))
        if seconds <= chart.period_s * len(chart.counts) / 2 or seconds == 1
    )
    rates = [float(f"{count / chart.period_s:.4g}") for count in chart.counts]
    data = [
        {
            "type": "scatter", "mode": "lines", "name": "requests a second", "fill": "tozeroy",
            "line": {"shape": "hv", "color": ACCENT, "width": 1.2},
            "x": _rounded([at * chart.period_s / unit for at in range(len(chart.counts) + 1)]),
            "y": [*rates, rates[-1]],
            "hovertemplate": f"%{{y}} a second at %{{x:.3~f}} {name}<extra></extra>",
        }
    ]  # fmt: skip
    return {
        "data": data,
        "layout": _layout(
            260,
            xaxis=_axis(f"{name} since the first request"),
            yaxis={**_axis("requests a second"), "rangemode": "tozero"},
        ),
    }


def _lengths(chart: LengthCurves) -> Figure:
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": list(values),
            "y": [round(rank / (len(values) - 1) * 100, 2) for rank in range(len(values))],
            "line": {"shape": "hv", "color": CLASS_COLOURS[at], "width": 1.8},
            "hovertemplate": f"%{{y:.0f}} % of the rows: at most %{{x:,}} {name}<extra></extra>",
        }
        for at, (name, values) in enumerate(chart.lines)
    ]  # fmt: skip
    return {
        "data": data,
        "layout": _layout(
            300,
            xaxis={**_axis("tokens"), "type": "log", "dtick": 1},
            yaxis={**_axis("% of the rows"), "range": [0, 101]},
        ),
    }


def _front_trace(points: Sequence[VariantPoint], name: str, colour: str, unit: float) -> Figure:
    return {
        "type": "scatter", "mode": "markers+text", "name": name,
        "x": [point.latency_s for point in points],
        "y": _scaled([point.peak_bytes for point in points], unit),
        "text": [_safe(point.name) for point in points],
        "textposition": "top center", "textfont": {"size": 11, "color": colour},
        "customdata": [_safe(point.quality) for point in points],
        "marker": {
            "size": 10, "color": colour,
            "symbol": ["circle" if p.is_quality_known else "circle-open" for p in points],
        },
        "error_y": {
            "type": "data", "color": colour, "thickness": 1, "width": 3,
            "array": _scaled([point.peak_reach_bytes for point in points], unit),
        },
        "hovertemplate": "%{text}: %{y:.2f}, %{x:.3f}<br>%{customdata}<extra></extra>",
    }  # fmt: skip


def _layout(height: int, **more: Any) -> Figure:
    return {
        "height": height,
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 64, "r": 14, "t": 44, "b": 48},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        **more,
    }


def _axis(title: str) -> Figure:
    return {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 8},
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": "#9aa5ad",
        "automargin": True,
        "exponentformat": "none",
    }


def _heading(text: str, x: float) -> Figure:
    return {
        "text": text, "x": x, "y": 1.0, "xref": "paper", "yref": "paper", "showarrow": False,
        "xanchor": "left", "yanchor": "bottom", "font": {"size": 12, "color": MUTED},
    }  # fmt: skip


def _unit(largest_bytes: float) -> tuple[float, str]:
    return (GIB, "GiB") if largest_bytes >= GIB else (MIB, "MiB")


def _scaled(values: Sequence[float | None], unit: float) -> list[float | None]:
    return [None if value is None else round(value / unit, 4) for value in values]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _colour(at: int) -> str:
    return CLASS_COLOURS[at % len(CLASS_COLOURS)]


def _safe(name: str) -> str:
    return html.escape(name)
