"""The page of a report: well-formed, self-contained, escaped, and of the numbers of the report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plan_reports import planning_of, report_of, untimed
from pricing import BITS, model, site
from undense.passes.pricing import Option, PricedModel, PricedSite
from undense.runtime.markup import Markup, element, joined, table
from undense.runtime.plots import pareto_plot, prediction_plot
from undense.runtime.report import write_report

HOSTILE = "<script>alert('x')</script>&amp;[red]$name\"'"
EIGHT, FOUR, TWO = BITS
PLANNING = planning_of(model(site("loud", 10.0), site(HOSTILE), site("asked", fixed=3)))
REPORT = report_of(PLANNING)
UNPLANNED = {**REPORT, "planning": None}
UNTIMED = report_of(planning_of(untimed()))
BARE = {"sites": [], "refusals": [], "bytes": {"before": 7, "after": None}}


class Page(HTMLParser):
    """Collects elements with their text, and fails where tags do not match."""

    void = ("meta",)

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in self.void:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()]["tag"] == tag

    def handle_data(self, data):
        for number in self.open:
            self.elements[number]["text"] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, Any]]:
        """Elements of a tag, with these attributes."""
        return [
            found
            for found in self.elements
            if found["tag"] == tag and attributes.items() <= found.items()
        ]

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [found["text"] for found in self.all(tag, **attributes)]


def page_of(folder: Path, report: dict[str, Any]) -> Page:
    write_report(folder, report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "report", [REPORT, UNPLANNED, UNTIMED, BARE], ids=["planned", "unplanned", "untimed", "bare"]
)
def test_the_page_is_self_contained(tmp_path, report):
    page = page_of(tmp_path, report)
    assert not {"script", "img", "link", "iframe"} & {found["tag"] for found in page.elements}
    for name in ("src", "href", "onclick"):
        assert not any(name in found for found in page.elements)
    style = page.texts("style")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_are_text(tmp_path):
    page = page_of(tmp_path, REPORT)
    body = page.texts("body")[0]
    assert body.count(HOSTILE) >= 2  # a bar and a row
    assert "bias<1>: no matrix" in page.texts("li")
    assert page.texts("p", **{"class": "warning"}) == [
        "a <warning>",
        "planned for size alone: <no> device",
    ]


def test_every_site_has_its_bars(tmp_path):
    page = page_of(tmp_path, REPORT)
    titles = page.texts("title")
    for found in PLANNING["sites"]:
        assert f"relative error {found['relative_error']:.2%}" in titles
        for spent in found["milliseconds"].values():
            assert f"{spent['chosen']:.3g} ms, dense {spent['dense']:.3g} ms" in titles
    assert len(page.all("svg", **{"class": "bar"})) == 3 * len(PLANNING["sites"])


def test_bars_are_as_long_as_their_numbers(tmp_path):
    page = page_of(tmp_path, REPORT)
    # At batch 1 dense takes 1 ms, to the end of the axis, and at batch 32 four of four.
    assert {bar["width"] for bar in page.all("rect", **{"class": "dense"})} == {"100.0%"}
    shares = [
        float(bar["width"].rstrip("%")) / 100 for bar in page.all("rect", **{"class": "chosen"})
    ]
    spent = [costs for found in PLANNING["sites"] for costs in found["milliseconds"].values()]
    expected = [costs["chosen"] / costs["dense"] for costs in spent]
    assert shares == pytest.approx(expected, abs=1e-3)


def test_what_is_slower_than_dense_looks_so(tmp_path):
    slow = site("a", slow=dict.fromkeys(BITS, 1.5))
    page = page_of(tmp_path, report_of(planning_of(model(slow))))
    assert len(page.all("rect", **{"class": "slower"})) == 2
    assert not page.all("rect", **{"class": "chosen"})


def test_small_times_are_in_microseconds(tmp_path):
    quick = Option("dense", 4000, {1: 0.25}, 0.0, 0.0, measured=True)
    coded = Option(EIGHT, 900, {1: 0.125}, 0.01, 0.1, measured=False)
    sites = (PricedSite("a", 64, 64, (quick, coded)),)
    page = page_of(tmp_path, report_of(planning_of(PricedModel(sites, 4000, {}, 0))))
    assert "125 µs, dense 250 µs" in page.texts("title")


def test_the_points_are_those_of_the_report(tmp_path):
    page = page_of(tmp_path, REPORT)
    cells = page.texts("td")
    for number, point in enumerate(PLANNING["pareto"], 1):
        start = cells.index(f"{point['size_ratio']:.1%}")
        assert cells[start - 1] == str(number)
        assert cells[start + 1] == f"{point['latency_ratio']['1']:.2f}×"
        assert cells[start + 4] == f"{point['distortion']:.4g}"
    assert page.texts("text", **{"class": "number"}) == [
        str(n + 1) for n in range(len(PLANNING["pareto"]))
    ]
    assert len(page.all("circle", **{"class": "plan"})) == 1
    assert len(page.all("circle", **{"class": "dot"})) == len(PLANNING["prediction"]["pairs"])


def test_options_that_were_not_chosen_are_folded_up_with_their_reasons(tmp_path):
    page = page_of(tmp_path, REPORT)
    folded = page.texts("details")
    assert len(folded) == len(PLANNING["sites"])
    for text, others in zip(folded, PLANNING["runners_up"].values(), strict=True):
        assert text.startswith(f"{len(others)} other options")
        for other in others:
            assert other["scheme"] + other["reason"] in text


def test_tiles_have_the_numbers_that_everybody_asks_for(tmp_path):
    page = page_of(tmp_path, REPORT)
    assert page.texts("strong") == [
        f"{34_567 / 123_456:.1%}",
        "3",
        *(f"{ratio:.2f}×" for ratio in PLANNING["latency_ratio"].values()),
        f"{PLANNING['distortion']:.4g}",
        f"{PLANNING['effective_bits']:.3g}",
    ]
    assert "123 kB → 34.6 kB" in page.texts("body")[0]


def test_operators_are_counted_before_and_after_the_most_changed_first(tmp_path):
    page = page_of(tmp_path, REPORT)
    rows = [
        text for text in page.texts("tr") if text.startswith(("MatMul", "undense", "Add", "all"))
    ]
    assert rows == ["MatMul52-3", "undense.X03+3", "Add22", "all77"]


def test_an_unplanned_report_has_errors_and_sites_alone(tmp_path):
    page = page_of(tmp_path, UNPLANNED)
    assert page.texts("h2") == ["Error of each site", "Sites", "Graph", "Not replaced", "Made from"]
    assert not page.all("details")
    assert len(page.all("svg")) == len(REPORT["sites"])
    assert "calibration: 7 samples, 4,096 tokens, sha256 abc" in page.texts("li")


def test_without_times_there_are_no_bars_of_them(tmp_path):
    page = page_of(tmp_path, UNTIMED)
    assert len(page.all("svg", **{"class": "bar"})) == 1
    assert not page.all("rect", **{"class": "dense"})


def test_sites_without_an_error_have_no_bar(tmp_path):
    lost = [{**REPORT["sites"][0], "relative_error": error} for error in (None, float("inf"))]
    page = page_of(tmp_path, {**UNPLANNED, "sites": lost})
    assert not page.all("svg")
    assert "No site was changed." in page.texts("p")
    page = page_of(tmp_path, {**UNPLANNED, "sites": [*lost, REPORT["sites"][0]]})
    assert len(page.all("svg")) == 1


def test_what_json_lacks_is_left_out_of_plots(tmp_path):
    lost = [{**PLANNING["pareto"][0], "distortion": None}, *PLANNING["pareto"][1:]]
    plan = {**PLANNING, "pareto": lost, "distortion": float("nan")}
    page = page_of(tmp_path, report_of(plan))
    assert page.texts("text", **{"class": "number"}) == [
        str(n + 1) for n in range(1, len(PLANNING["pareto"]))
    ]
    assert not page.all("circle", **{"class": "plan"})
    assert "–" in page.texts("strong")


def test_there_is_no_plot_of_nothing():
    exact = {"size_ratio": 1.0, "distortion": 0.0}
    assert pareto_plot([exact], exact) is None
    assert prediction_plot([{"predicted": 0.0, "measured": 0.0}]) is None


def test_larger_points_are_to_the_right_and_worse_ones_above():
    points = [{"size_ratio": 0.2, "distortion": 0.1}, {"size_ratio": 0.5, "distortion": 1e-4}]
    page = Page(str(pareto_plot(points, points[1])))
    small, large = page.all("circle", **{"class": "point"})
    assert float(small["cx"]) < float(large["cx"])
    assert float(small["cy"]) < float(large["cy"])
    plan = page.all("circle", **{"class": "plan"})[0]
    assert (plan["cx"], plan["cy"]) == (large["cx"], large["cy"])


def test_elements_escape_whatever_is_no_markup():
    assert element("b", "<i>", class_='"x"') == '<b class="&quot;x&quot;">&lt;i&gt;</b>'
    assert element("b", element("i", "&")) == "<b><i>&amp;</i></b>"
    assert element("text", text_anchor="end", x=None) == '<text text-anchor="end"></text>'
    assert joined(["<", Markup("<br>")]) == "&lt;<br>"


def test_columns_of_numbers_stand_to_the_right():
    page = Page(table(("a", "b", "c"), [["1.5%", "1.weight", "–"], ["2e-05", "3", "+7"]]))
    assert [cell.get("class") for cell in page.all("th")] == ["number", None, "number"]


def test_the_page_is_written_from_the_report_as_it_stands_in_json(tmp_path):
    page_of(tmp_path, REPORT)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    page_of(tmp_path, read)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
