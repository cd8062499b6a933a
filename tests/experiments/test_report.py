"""Reports: their figures, the page in a real browser, and Markdown with plots."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dynprune.experiments.commands import app
from dynprune.experiments.report import svg
from dynprune.experiments.report.figures import Bars, Chart, HeatMap, Series, figures_of, smoothed
from dynprune.experiments.report.html import page

CLASSES = ["cat", "dog <&>"]


def _model(accuracy: float, **more: Any) -> dict[str, Any]:
    numbers = {
        "eval_loss": 0.25,
        "eval_f1": accuracy,
        "time_per_sample_ms": 0.5,
        "time_per_sample_ms_p95": 0.75,
        "time_per_sample_ms_batch1": 1.0,
        "time_per_sample_ms_batch1_p95": 1.25,
        "cpu_seconds_per_1000_samples": 0.5,
        "parameters": 10_000,
        "file_bytes": 4e4,
    }
    return {**numbers, "eval_accuracy": accuracy, "eval_class_accuracy": [accuracy, 0.9], **more}


def _run(traffic: str, criterion: str, accuracy: float) -> dict[str, Any]:
    return _model(
        accuracy,
        traffic=traffic,
        criterion=criterion,
        compensation="mean",
        prune_threshold=0.05,
        reactivate_threshold=0.1,
        operations_share=0.5,
        time_share=0.625,
        time_share_batch1=0.75,
        active_parameters=5_000,
        materialized_file_bytes=2e4,
        flips=12,
        dense=_model(0.8),
    )


def _stream_run(active: list[float], flips: list[int]) -> dict[str, Any]:
    return {
        "accuracy": [0.5, 1.0, 0.5, 1.0],
        "active_fraction": active,
        "operations_share": active,
        "flips": flips,
        "active_share": {"conv1": active, "lstm.l0_reverse": [1.0, 1.0, 1.0, 1.0]},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """All that an experiment can write, in small."""
    points = [
        {
            "method": method,
            "compensation": stand_in,
            "operations_share": share,
            "time_share": share + 0.1,
            "accuracy": accuracy,
        }
        for method, stand_in, share, accuracy in (
            ("contribution", "mean", 0.5, 0.795),
            ("contribution", "mean", 0.25, 0.7),
            ("Torch-Pruning", None, 0.5, 0.4),
        )
    ]
    return {
        "experiment": "cifar10-cnn",
        "config": {"epochs": 2, "stream": "sudden:0>1"},
        "machine": {"processor": "some CPU"},
        "versions": {"torch": "2.13"},
        "data": {"name": "cifar10", "classes": CLASSES, "source": "hub", "train": 20, "test": 10},
        "training": [
            {"loss": 2.0, "validation_loss": 1.5},
            {"loss": 1.0, "validation_loss": 1.75},
        ],
        "runs": {
            "contribution": _run("all classes", "contribution", 0.75),
            "mean_abs": _run("all classes", "mean_abs", 0.7),
            "contribution lstsq 0": _run("0", "contribution", 0.85),
        },
        "trade_off": {"dense_accuracy": 0.8, "points": points},
        "stream": {
            "spec": "sudden:0*2>1*2",
            "phases": [{"name": "0", "batches": 2}, {"name": "1", "batches": 2}],
            "phase": [0, 0, 1, 1],
            "dense": {"accuracy": [0.5, 1.0, 0.5, 1.0]},
            "runs": {
                "adapting mean": _stream_run([1.0, 0.5, 1.0, 0.5], [0, 5, 5, 5]),
                "frozen mean": _stream_run([0.75, 0.75, 0.75, 0.75], [0, 0, 0, 0]),
            },
        },
    }


def test_figures(results: dict[str, Any]) -> None:
    figures = {figure.key: figure for figure in figures_of(results)}
    assert list(figures) == [
        "training",
        "trade-off-operations",
        "trade-off-time",
        "stream-accuracy",
        "stream-active",
        "stream-operations",
        "stream-flips",
        "usage-adapting-mean",
        "classes",
    ]
    assert "least in epoch 1" in figures["training"].text
    off = figures["trade-off-operations"]
    assert isinstance(off, Chart)
    assert off.series[0] == Series("dense", [25.0, 100], [80.0, 80.0], reference=True)
    assert off.series[1] == Series("contribution, mean", [25.0, 50.0], [70.0, 79.5])
    assert len(off.series) == 2
    assert off.text.endswith("80.00%: contribution, mean 50%. Not drawn, because lower than 65%: 1.")
    flips = figures["stream-flips"]
    assert isinstance(flips, Chart)
    drawn = [(series.name, list(series.y)) for series in flips.series]
    assert drawn == [("adapting mean", [0, 5, 10, 15]), ("frozen mean", [0, 0, 0, 0])]
    assert list(flips.marks) == [(1.0, "0"), (3.0, "1")]
    heat = figures["usage-adapting-mean"]
    assert isinstance(heat, HeatMap)
    assert heat.text == "The layer that uses the least of its units is conv1, 75% on average."
    bars = figures["classes"]
    assert isinstance(bars, Bars)
    assert bars.series[1] == ("mean_abs", [pytest.approx(-10), 0])
    assert bars.text == "Under contribution the class that loses most is cat, -5.00 points."


def test_without_training_stream_and_trade_off(results: dict[str, Any]) -> None:
    for name in ("stream", "trade_off"):
        del results[name]
    results["training"] = []
    assert [figure.key for figure in figures_of(results)] == ["classes"]


def test_smoothed() -> None:
    assert smoothed([1, 2, 3, 10], 2) == [1, 1.5, 2.5, 6.5]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0.93, 0.98, [0.93, 0.94, 0.95, 0.96, 0.97, 0.98]), (3, 3, [3])],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_heat_map_joins_equal_neighbours() -> None:
    drawn = svg.draw(HeatMap("k", "t", "x", "y", "text", ["a"], [[1, 1, 1, 0.5]]), "i")
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["1.000", "0.500"]
    widths = [float(width) for width in re.findall(r'rect class="heat"[^>]* width="([\d.]+)"', drawn)]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)


class _Page(HTMLParser):
    """What a page refers to, and the text alternatives of its figures."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.labelled: list[str] = []
        self.identities: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.addresses += [given[name] or "" for name in ("src", "href", "xlink:href") if name in given]
        self.images += given.get("role") == "img"
        self.labelled += (given.get("aria-labelledby") or "").split()
        if given.get("id"):
            self.identities.append(given["id"] or "")


def test_page_needs_nothing_else_and_says_what_its_figures_show(results: dict[str, Any]) -> None:
    html = page([results, results], ["first", "second"])
    parsed = _Page()
    parsed.feed(html)
    assert parsed.addresses == []
    assert "url(" not in html and "@import" not in html
    assert parsed.images == 2 * len(list(figures_of(results)))
    assert len(parsed.labelled) == 2 * parsed.images
    assert set(parsed.labelled) <= set(parsed.identities)
    assert len(set(parsed.identities)) == len(parsed.identities)
    assert "dog &lt;&amp;&gt;" in html and "dog <&>" not in html


@pytest.fixture
def run_dir(results: dict[str, Any], tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "cifar"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_report_command(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["report", str(run_dir), "--output", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "report.html").stat().st_size < 6_000_000
    lines = (out / "report.md").read_text().splitlines()
    assert "| cifar | all classes | dense | 80.00 |" in lines[4]
    plots = re.findall(r"\]\((.*\.png)\)", "\n".join(lines))
    assert len(plots) == 9
    assert all((out / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "report: expected {}/results.json, got no such file"),
        ("{", "report: expected JSON in {}/results.json, got "),
        ("[]", "report: expected {}/results.json with experiment, runs, "),
        ('{"experiment": "x"}', "report: expected {}/results.json with experiment, runs, "),
    ],
    ids=["missing", "cut short", "no record", "other keys"],
)
def test_report_of_something_else(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output.startswith("error: " + message.format(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or one that playwright has."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        path = found or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium found")
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        running = driver.chromium.launch(executable_path=path, args=quiet)
        yield running
        running.close()


def test_page_in_a_browser(browser: Any, results: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page([results], ["cifar"]), encoding="utf-8")
    for width, scheme, background in (
        (1280, "light", "rgb(252, 252, 251)"),
        (390, "dark", "rgb(26, 26, 25)"),
    ):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab = context.new_page()
        problems: list[str] = []
        asked: list[str] = []
        tab.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        tab.on("console", lambda said, problems=problems: problems.append(said.text))
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto(file.as_uri())
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == background
        # The table scrolls by itself, the page does not.
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        sizes = tab.evaluate(
            "[...document.querySelectorAll('figure > svg')].map(s => "
            "s.getBoundingClientRect().width / s.viewBox.baseVal.width * 11)"
        )
        assert len(sizes) == 9
        assert min(sizes) >= 9  # pixels of the smallest axis label
        cut_off = tab.evaluate(
            "[...document.querySelectorAll('figure > svg text')].filter(t => t.getBBox().x < 0)"
            ".map(t => t.textContent)"
        )
        assert cut_off == []
        rows = tab.locator("#headline tbody tr:visible")
        assert rows.count() == 5
        tab.fill("#filter", "MEAN_ABS cifar")
        assert rows.count() == 1
        assert "mean_abs" in rows.first.inner_text()
        assert tab.inner_text("#shown") == "1 of 5 rows"
        tab.fill("#filter", "no such row")
        assert rows.count() == 0
        tab.fill("#filter", "")
        assert rows.count() == 5
        assert problems == []
        assert asked == [file.as_uri()]
        context.close()
