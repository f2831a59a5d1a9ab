"""Plots of a plan as inline SVG, which take their colours from the page around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .axes import Axis, linear_axis, log_axis
from .markup import Markup, element

_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 16, 48
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_RIGHT_EDGE, _LOWER_EDGE = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM


def pareto_plot(points: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> Markup | None:
    """Distortion over size of numbered points, and the plan among them; None without any.

    A point without a positive distortion, such as the dense model, has no place on the scale.
    """
    shown = [
        (number, point["size_ratio"], point["distortion"])
        for number, point in enumerate(points, 1)
        if _positive(point["distortion"])
    ]
    chosen = (plan["size_ratio"], plan["distortion"])
    every = [place[1:] for place in shown] + ([chosen] if _positive(chosen[1]) else [])
    if not every:
        return None
    across = linear_axis([size for size, _ in every])
    up = log_axis([distortion for _, distortion in every])
    places = [(number, _x(across, size), _y(up, lost)) for number, size, lost in shown]
    marks = [element("polyline", points=" ".join(f"{x},{y}" for _, x, y in places), class_="line")]
    if _positive(chosen[1]):
        marks += _plan(_x(across, chosen[0]), _y(up, chosen[1]))
    for number, x, y in places:
        marks.append(element("circle", cx=x, cy=y, r=9, class_="point"))
        marks.append(element("text", str(number), x=x, y=y + 4, class_="number"))
    axes = _axes(across, up, "bytes of weights, of dense", "distortion", "{:.0%}".format)
    return _plot("distortion over size", [*axes, *marks])


def prediction_plot(pairs: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Measured over predicted distortions, with the line where they agree; None without any."""
    shown = [
        (pair["predicted"], pair["measured"], f"{pair['site']}, {pair['scheme']}")
        for pair in pairs
        if _positive(pair["predicted"]) and _positive(pair["measured"])
    ]
    if not shown:
        return None
    both = log_axis([value for predicted, measured, _ in shown for value in (predicted, measured)])
    marks = [
        element(
            "line", x1=_LEFT, y1=_LOWER_EDGE, x2=_RIGHT_EDGE, y2=_TOP, class_="agreement"
        )
    ]  # fmt: skip
    for predicted, measured, name in shown:
        marks.append(
            element(
                "circle",
                element("title", name),
                cx=_x(both, predicted),
                cy=_y(both, measured),
                r=4.5,
                class_="dot",
            )
        )
    axes = _axes(both, both, "predicted distortion", "measured distortion", _in_powers)
    return _plot("measured over predicted distortion", [*axes, *marks])


def _in_powers(value: float) -> str:
    """`0.05`, but `5·10⁻⁵`; for numbers of one digit."""
    if value >= 1e-3:
        return f"{value:g}"
    digit, _, power = f"{value:.0e}".partition("e")
    raised = f"10{str(int(power)).translate(_RAISED)}"
    return raised if digit == "1" else f"{digit}·{raised}"


def _positive(value: float | None) -> bool:
    return value is not None and value > 0


def _plan(x: float, y: float) -> Iterator[Markup]:
    yield element("circle", element("title", "this plan"), cx=x, cy=y, r=14, class_="plan")
    inside = x < _RIGHT_EDGE - 80
    yield element(
        "text",
        "this plan",
        x=x + 19 if inside else x - 19,
        y=y - 6,
        class_="name",
        text_anchor="start" if inside else "end",
    )


def _axes(
    across: Axis, up: Axis, across_name: str, up_name: str, across_text: Callable[[float], str]
) -> Iterator[Markup]:
    for tick in across.ticks:
        x = _x(across, tick)
        yield element("line", x1=x, x2=x, y1=_TOP, y2=_LOWER_EDGE, class_="grid")
        yield element("text", across_text(tick), x=x, y=_LOWER_EDGE + 18, text_anchor="middle")
    for tick in up.ticks:
        y = _y(up, tick)
        yield element("line", x1=_LEFT, x2=_RIGHT_EDGE, y1=y, y2=y, class_="grid")
        yield element("text", _in_powers(tick), x=_LEFT - 8, y=y + 4, text_anchor="end")
    middle = (_LEFT + _RIGHT_EDGE) / 2
    yield element("text", across_name, x=middle, y=_HEIGHT - 8, class_="axis")
    turned = f"translate(14 {(_TOP + _LOWER_EDGE) / 2}) rotate(-90)"
    yield element("text", up_name, transform=turned, class_="axis")


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + (_RIGHT_EDGE - _LEFT) * axis.place(value), 1)


def _y(axis: Axis, value: float) -> float:
    return round(_LOWER_EDGE - (_LOWER_EDGE - _TOP) * axis.place(value), 1)


def _plot(name: str, marks: Iterable[Markup]) -> Markup:
    size = f"0 0 {_WIDTH} {_HEIGHT}"
    return element("svg", *marks, viewBox=size, class_="plot", role="img", aria_label=name)
