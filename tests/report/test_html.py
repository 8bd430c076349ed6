"""The page: what it says, that names cannot write it, that it needs nothing but itself, and how a browser takes it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.report import html
from dreamer_lpm.report.command import main
from dreamer_lpm.report.curves import Curve
from dreamer_lpm.report.grid import LATE_SHARE, Verdict
from dreamer_lpm.report.statistics import Estimate
from dreamer_lpm.report.svg import Dots, Line, dot_chart, line_chart, number, ticks
from dreamer_lpm.report.video import EpisodeTrace, episode_video
from dreamer_lpm.types import UserError
from tests.report.browser import CHROMIUM, Browser
from tests.report.fake_grid import write_grid, write_run

SHARES = {
    "none": [0.2, 0.3, 0.25, 0.22, 0.28], "prediction_error": [0.8, 0.9, 0.85, 0.82, 0.88],
    "lpm": [0.1, 0.05, 0.12, 0.08, 0.09],
}  # fmt: skip
EVIL = '<script>alert("x")</script>'
HEADINGS = [
    "Scorecard", "Return", "Time in front of the TV", "Coverage", "Who does better", "Videos", "Every figure",
    "How it was made",
]  # fmt: skip


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of a little more than two seconds."""
    length = 33
    obs = np.random.default_rng(0).integers(0, 256, (length, 64, 64, 3), dtype=np.uint8)
    blank = np.zeros_like(obs)  # small, once it is coded
    return episode_video(
        tmp_path_factory.mktemp("film") / "film.mp4", EpisodeTrace(obs, np.zeros(length), blank, blank)
    )


def put(film: Path, run: Path) -> None:
    (run / "videos").mkdir()
    shutil.copyfile(film, run / "videos" / "eval_iter_6000_ep_0.mp4")


@pytest.fixture
def folder(tmp_path: Path, film: Path) -> Path:
    grid = write_grid(tmp_path / "grid", SHARES, unfinished=1)
    put(film, grid / "cells" / "2")  # "none" in "sham", the seed in the middle
    return grid


def test_the_whole_bank_and_random_play_have_each_a_colour() -> None:
    sheet = resources.files("dreamer_lpm.report").joinpath("page.css").read_text(encoding="utf-8")
    assert len(REGISTRY) <= html.COLOURS, "none is grey, and random play has one"
    for i in range(html.COLOURS):
        assert len(re.findall(rf"--c{i}: #[0-9a-f]{{6}};", sheet)) == 2, "by day and by night"
        assert f".m{i} {{ --c: var(--c{i}); }}" in sheet


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))  # a narrow space that holds "%" stays


def draw(folder: Path, *args: str) -> Page:
    assert main([str(folder), *args]) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_scorecard_says_who_is_captured_and_what_it_costs(folder: Path) -> None:
    page = draw(folder)
    assert "Who does the TV capture?" in page.text
    rows = re.findall(r'<tr class="of\d+"><td class="name.*?</tr>', (folder / "report.html").read_text(), re.DOTALL)
    said = [Page(row).text for row in rows]
    assert len(said) == 3
    assert "captured 3.2×" in said[1]  # the lower end, 0.8, over 0.25
    assert "walks away" in said[2]
    assert "90\u202f%" in said[2]  # of the return is kept
    assert "30 of 31 cells are finished; the others, unfinished or failed, are in no figure." in page.text
    assert ["5 of 6 seeds" in row for row in said].count(True) == 1, "survivors are told from all"


def test_a_method_with_fewer_seeds_than_others_says_so(tmp_path: Path) -> None:
    text = draw(write_grid(tmp_path / "grid", {"none": [0.3] * 5, "lpm": [0.1] * 3})).text
    assert "lpm 3 of 3 seeds" in text
    assert "5 of 5" not in text


def test_runs_of_several_lengths_are_told(folder: Path) -> None:
    path = folder / "cells" / "3" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "env_steps": 12000}))
    assert "30 runs of 6,000 to 12,000 env steps." in draw(folder).text


def test_every_seed_is_a_dot_and_a_line(folder: Path) -> None:
    page = draw(folder)
    dots = [a for tag, a in page.tags if tag == "circle" and a.get("class") == "point"]
    thin = [a for tag, a in page.tags if tag == "polyline" and a.get("class") == "seed"]
    assert len(thin) == 30 + 15 + 30  # returns, TV shares, coverages
    assert len(dots) == 30 + 15 + 30


def test_figures_commands_and_versions_are_there(folder: Path) -> None:
    text = draw(folder).text
    for word in ("dreamer-lpm compare --out grid", "2.13", "abc", '"curiosity": "lpm"', "interquartile"):
        assert word in text


def test_who_has_no_finished_cell_is_named(folder: Path) -> None:
    about = json.loads((folder / "grid.json").read_text())
    about["methods"][EVIL] = {"curiosity": "none"}
    about["cells"].append({"method": EVIL, "arm": "remote", "seed": 0, "folder": "cells/none"})
    (folder / "grid.json").write_text(json.dumps(about))
    page = draw(folder)
    assert f"are in no figure. There is none yet of: {EVIL}." in page.text


def test_every_env_is_named(folder: Path) -> None:
    path = folder / "cells" / "0" / "config.json"
    path.write_text(path.read_text().replace("Pendulum-v1", "CartPole-v1"))
    assert "CartPole-v1, Pendulum-v1" in draw(folder).text


def test_a_seed_alone_does_not_do_better(tmp_path: Path) -> None:
    text = draw(write_grid(tmp_path / "grid", {"none": [0.9], "lpm": [0.1]})).text
    assert "too few seeds" in text
    assert "Who does better" not in text


def test_different_revisions_are_said(folder: Path) -> None:
    assert "different versions" not in draw(folder).text
    path = folder / "cells" / "3" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "git_revision": "def" * 12 + "+dirty"}))
    assert "2 different versions of the code: abc, defdefdefd+dirty." in draw(folder).text
    path.write_text(json.dumps({**json.loads(path.read_text()), "git_revision": f"{'def' * 12}, {'b' * 40}"}))
    assert "3 different versions of the code: abc, bbbbbbbbbb, defdefdefd." in draw(folder).text


def test_the_page_asks_for_nothing(folder: Path) -> None:
    page = draw(folder)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    style = (folder / "report.html").read_text()
    assert "url(" not in style
    assert "@import" not in style
    [policy] = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'")


def evil_grid(tmp_path: Path) -> Path:
    """Every text of a grid that a file can bring is a script."""
    folder = write_grid(tmp_path / f"evil{EVIL}".replace("/", "_"), {EVIL: [0.1] * 3, "lpm": [0.9] * 3}, env_name=EVIL)
    text = (folder / "grid.json").read_text()
    for word in ("remote", "A TV shows photos.", "dreamer-lpm compare --out grid"):
        text = text.replace(json.dumps(word), json.dumps(EVIL + word))
    (folder / "grid.json").write_text(text)
    for path in folder.glob("cells/*/summary.json"):
        path.write_text(path.read_text().replace('"abc"', json.dumps(EVIL)).replace('"2.13"', json.dumps(EVIL)))
    return folder


def test_names_cannot_write_the_page(tmp_path: Path) -> None:
    folder = evil_grid(tmp_path)
    page = draw(folder)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in (folder / "report.html").read_text()
    assert page.text.count(EVIL) > 20
    handlers = [a for _, a in page.tags for name in a if name.startswith("on")]
    assert handlers == []


def test_a_name_cannot_leave_its_attribute(tmp_path: Path) -> None:
    evil = '" onload="alert(1)'
    page = draw(write_grid(tmp_path / "grid", {evil: [0.1] * 3}))
    assert not [a for _, a in page.tags for name in a if name.startswith("on")]


def test_a_large_video_is_linked_from_where_the_page_lies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(html, "EMBED_EACH", 10)
    draw(folder)
    assert 'src="cells/2/videos/eval_iter_6000_ep_0.mp4"' in (folder / "report.html").read_text()
    elsewhere = tmp_path / "pages" / "x.html"
    assert main([str(folder), "--out", str(elsewhere)]) == 0
    assert 'src="../grid/cells/2/videos/eval_iter_6000_ep_0.mp4"' in elsewhere.read_text()


def test_the_room_for_videos_is_limited(folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(film, folder / "cells" / "7")  # "none" in "remote", the seed in the middle
    monkeypatch.setattr(html, "EMBED_ALL", film.stat().st_size)
    sources = [a["src"] or "" for tag, a in draw(folder).tags if tag == "video"]
    assert [s.startswith("data:video/mp4") for s in sources] == [True, False]


def test_with_out_only_the_page_is_written(folder: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert sorted(p.name for p in folder.iterdir()) == before
    assert main([str(folder)]) == 0
    assert {"results.csv", "summary.json", "report.html"} <= {p.name for p in folder.iterdir()}


def test_a_run_alone(tmp_path: Path, film: Path) -> None:
    run = tmp_path / "mine"
    write_run(run, seed=3, result=-250.0, share=0.4)
    put(film, run)
    shutil.copyfile(film, run / "videos" / "eval_iter_x.mp4")  # somebody's own
    page = draw(run)
    for word in ("mine", "−250", "40\u202f%", "Return", "Time in front of the TV", "Coverage", "Reconstruction loss"):
        assert word in page.text
    assert "Bonus" not in page.text  # it logged none
    assert [tag for tag, _ in page.tags].count("video") == 1


def test_the_surprise_that_is_drawn_is_not_the_loss_that_ends_at_one_nat(tmp_path: Path) -> None:
    for name in ("health/kl", "loss/dyn"):
        run = tmp_path / name
        write_run(run, seed=3, result=-250.0, share=0.4)
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": step, "kind": "train", name: 0.3}) + "\n" for step in (6100, 6200))
        assert ("Surprise (KL)" in draw(run).text) == (name == "health/kl")


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "mine", seed=3, result=-250.0, share=0.4, summary=False)
    assert "not finished (at 6,000)" in draw(tmp_path / "mine").text


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    write_run(run, seed=3, result=-250.0, share=0.4, env_steps=4000)
    settings = json.loads((run / "config.json").read_text())
    settings["config"]["steps"] = 20_000
    (run / "config.json").write_text(json.dumps(settings))
    assert "20,000 env steps, not finished (at 6,000); the figures are of step 4,000." in draw(run).text


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a grid"):
        main([str(tmp_path)])
    folder = write_grid(tmp_path / "grid", {}, unfinished=0)
    with pytest.raises(UserError, match=r"No cell of .* is finished yet"):
        main([str(folder)])


def test_it_is_drawn_without_torch(folder: Path) -> None:
    code = (
        "import sys; from dreamer_lpm.cli import main; status = main(['report', sys.argv[1]]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)


def test_a_chance_of_nothing_is_not_divided_by() -> None:
    found = Verdict("captured", Estimate(0.5, 0.4, 0.6, 5), 0.0, LATE_SHARE)
    assert Page(html._chip(found)).text == "captured"


def test_a_film_without_ffmpeg_has_no_poster(
    folder: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert html._poster(film).startswith(' poster="data:image/jpeg')
    for unusable in (tmp_path / "none", tmp_path):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(unusable))
        assert html._poster(film) == ""
    [shown] = [attributes for tag, attributes in draw(folder).tags if tag == "video"]
    assert "poster" not in shown


@pytest.mark.parametrize("value", [-9.3, 0.0, 0.3, 1234.5, 1e9])
@pytest.mark.parametrize("apart", [0.0, 1e-16, 1e-13])
def test_values_equal_but_for_rounding_are_a_level_line(value: float, apart: float) -> None:
    values = value + apart * np.array([0.0, 1.0])
    curve = Curve(np.array([0.0, 100.0]), values, values, values, {0: values})
    chart = line_chart([Line("m0", "mine", curve)], title="Return", last_step=100)
    [value_line] = re.findall(r'<polyline class="mean[^"]*" points="([^"]+)"', chart)
    heights = {point.split(",")[1] for point in value_line.split()}
    assert len(heights) == 1, chart
    labels = re.findall(r'class="tick" x="42" [^>]*>([^<]+)<', chart)
    assert len(set(labels)) == len(labels) > 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1234.0, -56.0), (3.0, 3.0), (1e-7, 2e-7), (0.0, 6000.0)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    assert np.ptp(np.diff(found)) < 1e-9


def test_labels_of_long_numbers_do_not_run_into_each_other() -> None:
    def labels(values: tuple[float, float], **more: Any) -> list[float]:
        chart = dot_chart([Dots("m0", "a", dict(enumerate(values)), values[0])], title="", **more)
        return [float(x) for x in re.findall(r'class="tick" x="([\d.]+)"', chart)]

    assert len(labels((0.1, 0.9), percent=True, limits=(0, 1))) == 6
    long = labels((-1350.1, -1349.1))
    assert 2 <= len(long) < 7
    assert min(b - a for a, b in pairwise(long)) > len("−1,349.5") * 7
    alone = dot_chart([Dots("m0", "a", {0: -1349.5}, -1349.5)], title="")
    assert re.findall(r'class="tick"[^>]*>([^<]+)<', alone) == ["−1,450", "−1,400", "−1,350", "−1,300", "−1,250"]


def test_long_names_that_differ_at_their_ends_are_told_apart() -> None:
    names = ["lpm_paired_strength_1", "lpm_paired_strength_2", "prediction_error"]
    chart = dot_chart([Dots("m0", name, {0: 1.0}, 1.0) for name in names], title="")
    shown = re.findall(r'<text class="row"[^>]*>([^<]+)<title>([^<]+)</title>', chart)
    assert [name for _, name in shown] == names
    assert [text for text, _ in shown] == ["lpm_pair…trength_1", "lpm_pair…trength_2", "prediction_error"]


def test_numbers_are_read_easily() -> None:
    assert number(-0.001, percent=True) == "0\u202f%"
    assert [number(x) for x in (0, -3.14159, 12345.6, 12.34, 0.00123)] == ["0", "−3.14", "12,346", "12.3", "0.0012"]
    assert number(-0.5, percent=True) == "−50\u202f%"


# --- in a browser -----------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@needs_chromium
def test_a_browser_shows_it_and_has_nothing_to_complain_of(folder: Path, tmp_path: Path) -> None:
    long_name = folder / "cells" / "3" / "summary.json"
    long_name.write_text(long_name.read_text().replace('"abc"', '"0123456789abcdef+dirty"'))
    draw(folder)
    with Browser(tmp_path / "profile") as browser:
        browser.look(1200)
        browser.open(folder / "report.html")
        assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == HEADINGS
        assert browser.evaluate("document.querySelector('h1').textContent") == "Who does the TV capture?"
        # The legend hides a method everywhere.
        seen = "[...document.querySelectorAll('.of1')].filter(x => getComputedStyle(x).display != 'none').length"
        assert browser.evaluate(seen) > 10
        browser.evaluate("document.querySelector('#show1').click()")
        assert browser.evaluate(seen) == 0
        paper = "getComputedStyle(document.body).backgroundColor"
        light = browser.evaluate(paper)
        for width in (1200, 390):
            for dark in (False, True):
                browser.look(width, dark=dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(paper) != light
        assert browser.requests() == []
        assert browser.complaints() == []


@needs_chromium
def test_a_browser_runs_no_names(tmp_path: Path) -> None:
    folder = evil_grid(tmp_path)
    draw(folder)
    with Browser(tmp_path / "profile") as browser:
        browser.open(folder / "report.html")
        assert browser.evaluate("document.scripts.length") == 0
        assert browser.complaints() == []


@needs_chromium
def test_the_browser_helper_sees_requests_and_complaints(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); missing()</script>")
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.requests() == ["http://127.0.0.1:9/x.png"]
        assert len(browser.complaints()) >= 2
