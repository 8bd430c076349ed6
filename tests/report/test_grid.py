"""What a grid's folder says: figures, verdicts, prices; absent figures stay absent."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreamer_lpm.report.command import write_report
from dreamer_lpm.report.grid import (
    COVERAGE,
    LATE_SHARE,
    MEASURES,
    RETURN,
    SHARE,
    Cell,
    against_sham,
    improvements,
    read_grid,
    verdict,
    write_results,
)
from dreamer_lpm.report.html import grid_page
from dreamer_lpm.types import UserError
from tests.report.fake_grid import CHANCE, write_grid, write_run

SHARES = {
    "prediction_error": [0.8, 0.9, 0.85, 0.8, 0.9],
    "lpm": [0.1, 0.05, 0.12, 0.1, 0.08],
    "none": [0.1, 0.9, 0.2, 0.3, 0.25],
    "young": [0.9, 0.9],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_grid(tmp_path / "grid", SHARES, unfinished=2)


def test_only_finished_cells_count(folder: Path) -> None:
    grid = read_grid(folder)
    assert (len(grid.finished), len(grid.cells)) == (34, 36)
    assert grid.values("lpm", "remote", LATE_SHARE) == dict(enumerate(SHARES["lpm"]))


def test_verdicts(folder: Path) -> None:
    grid = read_grid(folder)
    words = {m: found.word for m in SHARES if (found := verdict(grid, m, "remote"))}
    assert words == {"prediction_error": "captured", "lpm": "free", "none": "open", "young": "few seeds"}
    assert verdict(grid, "lpm", "sham") is None


def test_return_is_held_against_the_sham_arm_seed_by_seed(folder: Path) -> None:
    found = against_sham(read_grid(folder), "lpm", "remote")
    assert found is not None
    assert found.kept is not None
    assert found.kept.value == pytest.approx(0.9)
    assert found.difference.value == pytest.approx(-100.2)  # of seed 2, the middle one
    assert found.seeds == [0, 1, 2, 3, 4]


def test_three_seeds_have_an_interval_and_no_verdict(tmp_path: Path) -> None:
    """A bootstrap's of three is too narrow: in one case of four the truth lies outside."""
    for n, word in ((3, "few seeds"), (4, "few seeds"), (5, "free")):
        found = verdict(read_grid(write_grid(tmp_path / str(n), {"lpm": [0.1] * n})), "lpm", "remote")
        assert found is not None
        assert found.share.high is not None
        assert found.word == word


def test_who_never_sought_the_reward_keeps_none_of_it(tmp_path: Path) -> None:
    """Its return may be far from random play all the same, by holding still."""
    folder = write_grid(tmp_path / "grid", {"lpm": [0.1] * 5})
    for cell in read_grid(folder).cells:
        settings = json.loads((cell.folder / "config.json").read_text())["config"]
        changed(cell.folder / "config.json", config={**settings, "agent": {"extrinsic": 0.0}})
    found = against_sham(read_grid(folder), "lpm", "remote")
    assert found is not None
    assert (found.kept, found.reason) == (None, "it never sought the task's reward")
    assert found.difference.value == pytest.approx(-100.2)


def test_pairs_are_of_the_same_seeds(folder: Path) -> None:
    grid = read_grid(folder)
    [cell] = [c for c in grid.cells if (c.method, c.arm, c.seed) == ("lpm", "sham", 4)]
    shutil.rmtree(cell.folder)
    found = against_sham(read_grid(folder), "lpm", "remote")
    assert found is not None
    assert found.seeds == [0, 1, 2, 3]


def test_a_return_that_never_left_random_play_has_no_share_to_keep(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", {"lpm": [0.1] * 5})
    for cell in read_grid(folder).cells:
        shutil.rmtree(cell.folder)
        write_run(cell.folder, seed=cell.seed, result=-1210.0, share=0.1 if cell.arm == "remote" else None)
    found = against_sham(read_grid(folder), "lpm", "remote")
    assert found is not None
    assert found.kept is None
    assert "learned nothing" in found.reason


def test_without_a_sham_arm_there_is_no_price(folder: Path) -> None:
    assert against_sham(read_grid(folder), "lpm", "sham") is None


def test_missing_figures_are_absent(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", {"lpm": [0.1] * 3})
    for path in folder.glob("cells/*/summary.json"):
        summary = json.loads(path.read_text())
        for key in ("tv_share_last_quarter", "coverage", "escape_step"):
            summary.pop(key, None)
        path.write_text(json.dumps(summary))
    grid = read_grid(folder)
    assert grid.estimate("lpm", "remote", COVERAGE) is None
    assert grid.share_measure("remote") is SHARE
    assert {m.key for m in grid.measures()} == {"eval_return_mean", "tv_share", "tv_over_chance"}
    write_results(grid)
    assert "coverage" not in json.loads((folder / "summary.json").read_text())["measures"]["remote"]["lpm"]


def test_never_escaped_counts_as_the_whole_run(folder: Path) -> None:
    grid = read_grid(folder)
    measures = {m.key: m for m in MEASURES}
    assert set(grid.values("lpm", "remote", measures["escape_step"]).values()) == {3000}
    assert set(grid.values("prediction_error", "remote", measures["escape_step"]).values()) == {6000}
    assert grid.values("none", "remote", measures["escaped"]) == {0: 1, 1: 0, 2: 1, 3: 0, 4: 1}
    assert grid.values("none", "sham", measures["escaped"]) == {}
    found = grid.estimate("none", "remote", measures["escaped"])
    assert found is not None
    assert found.value == pytest.approx(0.6), "a share of seeds, not the mean of the middle ones"


def test_a_run_too_short_to_judge_says_nothing_of_escape(folder: Path) -> None:
    for path in folder.glob("cells/*/summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "env_steps": 400, "escape_step": None}))
    grid = read_grid(folder)
    keys = {m.key for m in grid.measures()}
    assert "tv_share" in keys
    assert not {"escaped", "escape_step"} & keys


def test_a_tv_that_chance_never_finds_is_a_tv(folder: Path) -> None:
    """Whoever watches it then does so of its own; a share over a chance of nothing is no figure."""
    for path in folder.glob("cells/*/summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "tv_chance": 0.0}))
    grid = read_grid(folder)
    assert (grid.chance("remote"), grid.chance("sham")) == (0.0, None)
    found = verdict(grid, "lpm", "remote")
    assert found is not None
    assert found.word == "captured"
    assert "tv_over_chance" not in {m.key for m in grid.measures()}


def test_nobody_is_captured_who_watches_no_more_than_an_agent_that_wants_nothing(tmp_path: Path) -> None:
    """Its policy, as random as it can be, is not uniform: before the study's remote it is at 31 %, by chance 25 %."""
    shares = {"none": [0.30, 0.31, 0.32] * 2, "drifts": [0.29, 0.32, 0.3] * 2, "lpm_optimistic": [0.48, 0.5, 0.52] * 2}
    folder = write_grid(tmp_path / "grid", shares)
    for method, extrinsic in (("none", 1.0), ("none", 0.0)):
        for cell in read_grid(folder).of(method, "remote"):
            path = cell.folder / "config.json"
            about = json.loads(path.read_text())
            about["config"]["agent"] = {"curiosity": "none", "extrinsic": extrinsic}
            path.write_text(json.dumps(about))
        grid = read_grid(folder)
        words = {m: found.word for m in shares if (found := verdict(grid, m, "remote"))}
        drifted = "captured" if extrinsic else "open"  # what a task makes of the TV is no control for the others
        assert words == {"none": drifted, "drifts": drifted, "lpm_optimistic": "captured"}


@pytest.mark.parametrize("trigger", ["always", "passive"])
def test_a_tv_that_nobody_can_choose_says_nothing_of_who_watches_it(folder: Path, trigger: str) -> None:
    for path in folder.glob("cells/*/config.json"):
        about = json.loads(path.read_text())
        about["config"]["tv"]["trigger"] = trigger
        path.write_text(json.dumps(about))
    grid = read_grid(folder)
    assert [verdict(grid, method, "remote") for method in SHARES] == [None] * len(SHARES)
    assert grid.estimate("lpm", "remote", SHARE) is not None, "that it was on, and how often, is still a figure"
    assert not {"escaped", "escape_step", "tv_over_chance"} & {m.key for m in grid.measures()}
    assert "by chance 25\u202f% of the steps, whatever the policy does" in grid_page(grid, folder)
    write_results(grid)
    assert set(json.loads((folder / "summary.json").read_text())["improvement"]["remote"]) == {RETURN.key, COVERAGE.key}


def test_a_method_with_another_tv_is_measured_by_its_own_chance(folder: Path) -> None:
    for cell in read_grid(folder).of("prediction_error", "remote"):
        path = cell.folder / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tv_chance": 0.95}))
    grid = read_grid(folder)
    words = {m: found.word for m in SHARES if (found := verdict(grid, m, "remote"))}
    assert (words["prediction_error"], words["none"]) == ("free", "open")
    assert (grid.chance("remote", "prediction_error"), grid.chance("remote", "lpm")) == (0.95, CHANCE)
    page = grid_page(grid, folder)
    assert "chance is another for each method" in page
    assert 'class="ref-label"' not in page, "a line would be true of one of them only"
    square = improvements(grid, "remote")[LATE_SHARE.key]
    assert "lpm" not in square["prediction_error"], "less of a TV that is nearly always on is not more of another"
    assert "lpm" in square["none"]


def test_a_method_with_another_env_keeps_of_its_own_gain(folder: Path) -> None:
    """One whose episodes are a quarter as long has a quarter of the returns, and of those of random play."""
    grid = read_grid(folder)
    for path in [cell.folder for arm in ("sham", "remote") for cell in grid.of("lpm", arm)]:
        about = json.loads((path / "config.json").read_text())
        about["config"]["time_limit"] = 50
        (path / "config.json").write_text(json.dumps(about))
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        rows = [{**row, **({"return": row["return"] / 4} if "return" in row else {})} for row in rows]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**summary, "eval_return_mean": summary["eval_return_mean"] / 4}))
    grid = read_grid(folder)
    for method in ("lpm", "none"):
        found = against_sham(grid, method, "remote")
        assert found is not None
        assert found.kept is not None
        assert found.kept.value == pytest.approx(0.9)
    square = improvements(grid, "sham")[RETURN.key]
    assert not square["lpm"]
    assert "prediction_error" in square["none"]
    assert "lpm" not in square["none"]


def test_csv_has_a_row_a_seed(folder: Path) -> None:
    write_results(read_grid(folder))
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 34
    assert [(r["method"], r["arm"], r["seed"]) for r in rows[:2]] == [
        ("prediction_error", "sham", "0"),
        ("prediction_error", "sham", "1"),
    ]
    [row] = [r for r in rows if (r["method"], r["arm"], r["seed"]) == ("none", "remote", "1")]
    assert float(row["tv_share_last_quarter"]) == 0.9
    assert row["escape_step"] == ""
    assert (row["tv_images"], row["version_torch"], row["git_revision"]) == ("photos", "2.13", "abc")
    assert list(rows[0])[-2:] == ["version_torch", "git_revision"]


def test_summary_says_what_the_functions_say(folder: Path) -> None:
    grid = read_grid(folder)
    write_results(grid)
    said = json.loads((folder / "summary.json").read_text())
    assert said["cells"] == {"finished": 34, "planned": 36}
    share = said["measures"]["remote"]["lpm"]["tv_share_last_quarter"]
    found = grid.estimate("lpm", "remote", LATE_SHARE)
    assert found is not None
    assert (share["value"], share["low"], share["high"], share["n"]) == (found.value, found.low, found.high, 5)
    assert share["seeds"] == {str(i): v for i, v in enumerate(SHARES["lpm"])}
    over = said["measures"]["remote"]["prediction_error"]["tv_over_chance"]
    assert over["value"] == pytest.approx(0.85 / CHANCE)
    assert said["tv"]["remote"]["lpm"]["verdict"] == "free"
    assert said["against_sham"]["remote"]["lpm"]["return_kept"]["value"] == pytest.approx(0.9)
    assert "sham" not in said["against_sham"]


def test_less_tv_is_better_and_the_square_adds_up(folder: Path) -> None:
    square = improvements(read_grid(folder), "remote")[LATE_SHARE.key]
    assert square["lpm"]["prediction_error"]["value"] == 1
    assert square["prediction_error"]["lpm"]["value"] == 0
    for a in SHARES:
        for b in SHARES:
            if a != b:
                assert square[a][b]["value"] + square[b][a]["value"] == pytest.approx(1)
    chance = square["none"]["lpm"]
    assert chance["low"] <= chance["value"] <= chance["high"]
    assert RETURN.key in improvements(read_grid(folder), "sham")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "arms": 3}'])
def test_a_damaged_grid_is_answered(tmp_path: Path, content: str) -> None:
    (tmp_path / "grid.json").write_text(content)
    with pytest.raises(UserError, match=r"grid\.json"):
        read_grid(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", '{"config": null}'), ("summary.json", '{"env_steps": "many"}'), ("summary.json", "[]")],
)
def test_a_damaged_run_is_answered(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged; restore it"):
        getattr(Cell("lpm", "off", 0, tmp_path), name.removesuffix(".json"))


def test_no_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no grid"):
        read_grid(tmp_path)


def test_a_late_share_is_judged_by_only_if_all_have_it(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", {"lpm": [0.1] * 3})
    assert read_grid(folder).share_measure("remote") is LATE_SHARE
    changed(read_grid(folder).of("lpm", "remote")[0].folder / "summary.json", tv_share_last_quarter=None)
    assert read_grid(folder).share_measure("remote") is SHARE


def test_an_idle_agent_before_another_tv_is_no_measure(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", {"none": [0.9] * 5, "rnd": [0.6, 0.61, 0.62, 0.6, 0.63]})
    for cell in read_grid(folder).of("none", "remote"):
        settings = json.loads((cell.folder / "config.json").read_text())["config"]
        changed(cell.folder / "config.json", config={**settings, "agent": {"curiosity": "none", "extrinsic": 0}})
        changed(cell.folder / "summary.json", tv_chance=0.85)
    assert verdict(read_grid(folder), "rnd", "remote").word == "captured"


def test_another_action_repeat_is_another_env(tmp_path: Path) -> None:
    cells = []
    for repeat in (1, 2):
        cells.append(Cell("m", "a", 0, tmp_path / str(repeat)))
        cells[-1].folder.mkdir()
        settings = {"env_name": "x", "action_repeat": repeat, "time_limit": None}
        changed(cells[-1].folder / "config.json", config=settings)
    assert cells[0].env != cells[1].env


def test_a_run_of_several_says_its_own_share_of_the_time(tmp_path: Path) -> None:
    changed(tmp_path / "summary.json", wall_seconds=60, runs_in_process=2, shared_seconds=41.5)
    assert Cell("m", "a", 0, tmp_path).seconds == 41.5


def changed(path: Path, **changes: Any) -> None:
    """A JSON file with these keys; None takes one away."""
    data = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": {"remote": {"words": 3}}}, {"commands": 3}, {"methods": ["none"]}, {"common": 3}, {"machine": 3},
        {"seeds": ["x"]}, {"cells": [{"method": "m", "arm": "a", "seed": "x", "folder": "cells/0"}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_grid_of_other_kinds_of_values_is_damaged(changes: dict[str, Any], folder: Path) -> None:
    changed(folder / "grid.json", **changes)
    with pytest.raises(UserError, match=r"grid\.json is damaged"):
        read_grid(folder)


@pytest.mark.parametrize("elsewhere", ["/etc", "../other", "cells/../../other"])
def test_a_grids_cells_lie_in_it(elsewhere: str, folder: Path) -> None:
    changed(folder / "grid.json", cells=[{"method": "m", "arm": "remote", "seed": 0, "folder": elsewhere}])
    with pytest.raises(UserError, match="has cells outside of"):
        read_grid(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("summary.json", {"tv_chance": "x"}), ("summary.json", {"versions": []}), ("summary.json", {"deep": "DEEP"}),
        ("summary.json", {"eval_return_mean": 10**400}), ("config.json", {"config": {"tv": 3}}),
        ("config.json", {"config": {"agent": "x"}}), ("config.json", {"config": {"steps": "x"}}),
    ],
    ids=str,
)  # fmt: skip
def test_a_run_of_other_kinds_of_values_is_damaged(name: str, changes: dict[str, Any], folder: Path) -> None:
    path = folder / "cells" / "0" / name
    changed(path, **changes)
    path.write_text(path.read_text().replace('"DEEP"', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        write_report(folder)


def test_figures_beyond_all_measure_are_not_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, seed=0, result=-200.0, share=0.1)
    with (run / "metrics.jsonl").open("a") as file:
        for step, value in ((6200, 1.7e308), (6400, -1.7e308)):
            file.write(json.dumps({"step": step, "kind": "episode", "return": value, "length": 1}) + "\n")
    assert write_report(run).is_file()


@pytest.mark.parametrize("line", ['{"step": 1' + "0" * 400 + ', "kind": "train"}', "[" * 100_000])
def test_a_line_that_no_run_writes_is_named(line: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, seed=0, result=-200.0, share=0.1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at line"):
        write_report(run)


def test_a_film_that_is_a_link_or_a_pipe_is_none_of_the_runs(folder: Path) -> None:
    cell = read_grid(folder).cells[0]
    (cell.folder / "videos").mkdir()
    (cell.folder / "videos" / "eval_iter_1_ep_0.mp4").symlink_to("/etc/passwd")
    os.mkfifo(cell.folder / "videos" / "eval_iter_2_ep_0.mp4")
    assert cell.videos == []
