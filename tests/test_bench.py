"""The stopwatch: what it counts is what is trained, and a duel is fair, in turns, and says why a contestant died."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamer_lpm import agent as agent_module
from dreamer_lpm import bench
from dreamer_lpm.bench import Bench, Contestant, Work, duel
from dreamer_lpm.config import RunConfig
from dreamer_lpm.types import UserError

TINY = Work("tiny", 2, 6, "fp32", 1)

# A contestant whose updates take what it is told, on both clocks, and who writes down when it was asked.
FAKE = """
import json, sys
name, seconds, log = sys.argv[1], float(sys.argv[2]), sys.argv[3]
print(json.dumps({"parameters": {"encoder": 3, "actor": 4}, "gflop": 1.0}), flush=True)
for round, line in enumerate(sys.stdin):
    with open(log, "a") as file:
        file.write(name)
    spent = [100.0 if round == 0 else seconds] * int(line)
    print(json.dumps({"wall": spent, "cpu": [x / 2 for x in spent], "peak_memory_bytes": 7}), flush=True)
"""


def fake(name: str, seconds: float, log: Path) -> Contestant:
    return Contestant(name, (sys.executable, "-c", FAKE, name[0], str(seconds), str(log)))


def test_parts_add_up_to_all_that_is_trained() -> None:
    made = Bench(TINY)
    trained = sum(p.numel() for group in made.agent.optimizer.param_groups for p in group["params"])
    assert sum(made.about()["parameters"].values()) == trained


def test_dreamer_v3_1m_is_as_large_as_the_peers() -> None:
    peer = {  # counted by benchmarks/peers/sheeprl_update.py in sheeprl 0.8.4's dreamer_v3_5 with the sizes of its 1M
        "encoder": 14_304, "rssm": 376_384, "decoder": 80_595, "reward": 57_663, "continue": 41_153,
        "actor": 49_666, "critic": 66_111,
    }  # fmt: skip
    ours = Bench(Work("1m", 1, 2, "fp32", 1)).about()["parameters"]
    without_curiosity = sum(ours[name] for name in peer)
    assert without_curiosity == pytest.approx(sum(peer.values()), rel=0.05)


def test_twice_the_batch_is_twice_the_flop() -> None:
    # Every product of an update has the batch as a factor, as long as each replayed state starts a dream.
    one, two = (Bench(Work("1m", b, 3, "fp32", 1)).about()["gflop"] for b in (1, 2))
    assert two == pytest.approx(2 * one, rel=1e-6)


def test_an_update_that_is_timed_learns() -> None:
    made = Bench(TINY)
    before = [p.clone() for p in made.agent.parameters()]
    times = bench.timed(made.update, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, made.agent.parameters(), strict=True))
    assert times["wall"][0] > 0
    assert times["cpu"][0] > 0


@pytest.mark.parametrize("dreams_first", [False, True], ids=["cpu", "cuda"])  # the order in which they are told
@pytest.mark.parametrize("pieces", [1, 3])
def test_parts_make_up_the_update(pieces: int, dreams_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is timed from its method to the next one's: five seconds put into one show up there alone."""
    if dreams_first:
        monkeypatch.setattr(agent_module, "at_once", lambda first, second, *_: (second(), first())[::-1])
    made = Bench(TINY)
    monkeypatch.setattr(agent_module, "_DREAMS", TINY.batch * TINY.length // pieces)
    made.update()
    clock = [0.0]

    def slow(seconds: float, method: Callable[..., Any]) -> Callable[..., Any]:
        def later(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return method(*args, **kwargs)

        return later

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "perf_counter", lambda: clock[0])
        for owner, name, seconds in (
            (made.agent.world, "losses", 7.0),
            (made.agent.curiosity, "loss", 5.0),
            (made.agent.world.rssm, "imagine", 3.0),
            (made.agent.behavior, "loss", 2.0),
            (made.agent.optimizer, "step", 1.0),
        ):
            patch.setattr(owner, name, slow(seconds, getattr(owner, name)))
        parts = made.parts(repeat=3)
    wanted = {"noise": 0, "world model": 7, "bonus": 5, "imagination": 3 * pieces, "actor-critic": 2, "optimizer": 1}
    assert parts == wanted


def test_flop_are_counted_whatever_the_threads() -> None:
    before = torch.get_num_threads()
    try:
        one, two = (Bench(replace(TINY, threads=n)).about()["gflop"] for n in (1, 2))
    finally:
        torch.set_num_threads(before)
    assert one == two


def test_loop_rate_is_that_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the lines of its metrics, and only those after the first updates."""
    asked = []

    def fake_train(cfg: RunConfig, folder: Path) -> None:
        asked.append(cfg)
        folder.mkdir()
        lines = [{"step": 1200, "kind": "train", "wall_steps_per_s": 1.0}]
        lines += [{"step": 1400 + i, "kind": "train", "wall_steps_per_s": 40.0 + i} for i in range(3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(bench, "train", fake_train)
    assert bench.loop_rate(TINY, 400) == 41.0
    assert (asked[0].steps, asked[0].batch_size, asked[0].threads) == (1600, 2, 1)


def test_duel_takes_turns_and_leaves_out_the_warm_up(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    rows = duel([fake("ours", 0.5, log), fake("peer", 1.5, log)], rounds=3)
    assert log.read_text() == "op" * 4
    assert rows["ours"]["seconds"]["wall"] == [0.5] * 3
    assert (rows["peer"]["wall"], rows["peer"]["cpu"], rows["peer"]["peak_memory_bytes"]) == (1.5, 0.75, 7)
    assert (rows["peer"]["world_parameters"], rows["peer"]["all_parameters"]) == (3, 7)


def test_a_dying_contestant_gets_a_last_word(tmp_path: Path) -> None:
    dies = Contestant("peer", (sys.executable, "-c", "raise SystemExit('No module named sheeprl')"))
    with pytest.raises(UserError, match="'peer' stopped: No module named sheeprl"):
        duel([dies], rounds=1)
    with pytest.raises(UserError, match="'peer' stopped: enough"):
        duel([Contestant("peer", (sys.executable, "-c", "print('{}', flush=True); input(); exit('enough')"))], rounds=1)
    gone = "import os; print('{}', flush=True); os.close(0); exit('out of memory')"  # before it was asked
    with pytest.raises(UserError, match="'peer' stopped: out of memory"):
        duel([Contestant("peer", (sys.executable, "-c", gone)), fake("slow", 1.0, tmp_path / "log")], rounds=1)


def test_environment_reaches_the_contestant() -> None:
    shows = "import os; raise SystemExit(os.environ['MALLOC_TOP_PAD_'])"
    settings = tuple(bench.KEEP_FREED_MEMORY.items())
    with pytest.raises(UserError, match=str(2**28)):
        duel([Contestant("peer", (sys.executable, "-c", shows), settings)], rounds=1)


def test_alone_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--preset", "tiny", "--batch", "2", "--length", "6", "--repeat", "3", "--precision", "fp32"]
    files = ["--json", str(tmp_path / "new" / "a.json"), "--csv", str(tmp_path / "new" / "a.csv"), "--note", "noisy"]
    assert bench.main([*args, *files]) == 0
    said = capsys.readouterr().out
    assert "a policy step takes" in said
    assert "of the peak in fp32" in said
    result = json.loads((tmp_path / "new" / "a.json").read_text())
    row = result["contestants"]["ours"]
    assert (row["batch"], row["length"], row["precision"], result["note"]) == (2, 6, "fp32", "noisy")
    assert sorted(row["seconds"]["wall"])[1] == row["wall"]
    peak = row["product_peak_gflop_s"]["fp32"]
    assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["wall"] / peak)
    assert 0.001 < row["share_of_peak"] < 1
    assert row["env_step"]["--fast-render"] < row["env_step"]["own picture"] < 1
    with (tmp_path / "new" / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(x["wall_seconds"]) for x in lines] == pytest.approx(row["seconds"]["wall"], abs=1e-6)


def test_against_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own worker processes against a peer that always takes an hour."""
    peer, log = tmp_path / "peer.py", tmp_path / "asked"
    peer.write_text(f"import sys\nsys.argv = ['', 'p', '3600', {str(log)!r}]\n{FAKE}")
    monkeypatch.setattr(bench, "PEER_SCRIPT", peer)
    args = ["--against", "sheeprl", "--peer-python", sys.executable, "--batch", "2", "--length", "3", "--repeat", "1"]
    assert bench.main([*args, "--precision", "fp32", "--json", str(tmp_path / "a.json")]) == 0
    assert "times as long as ours" in capsys.readouterr().out
    result = json.loads((tmp_path / "a.json").read_text())
    assert {"ours 1m fp32", "ours tiny fp32", "sheeprl dreamer_v3_5 fp32"} < set(result["contestants"])
    for ratio in result["ratios"]:
        assert ratio["wall"] == pytest.approx(3600 / result["contestants"][ratio["ours"]]["wall"])
        assert ratio["wall"] > 100  # a worker's time is in seconds, and its update takes less than 36 of them
    few = ["--only", "tiny", "v3_5 fp32", "--json", str(tmp_path / "b.json")]
    assert bench.main([*args, "--precision", "fp32", *few]) == 0
    assert set(json.loads((tmp_path / "b.json").read_text())["contestants"]) == {
        "ours tiny fp32",
        "sheeprl dreamer_v3_5 fp32",
    }
    with pytest.raises(UserError, match="the contestants are: ours 1m fp32"):
        bench.main([*args, "--only", "nobody"])


def test_solve_against_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run of ours with a threshold that random episodes pass, and a peer that gives up."""
    peer = tmp_path / "peer.py"
    peer.write_text("""
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(flags["--log"], "w") as file:
    print(json.dumps({"kind": "about", "step": 0, "flags": flags}), file=file)
    for i in range(1, 8):
        print(json.dumps({"kind": "episode", "step": 200 * i, "return": -9000.0 + i, "updates": i}), file=file)
""")
    monkeypatch.setattr(bench, "SOLVE_SCRIPT", peer)
    monkeypatch.setattr(bench, "SOLVED", -5000.0)
    args = ["--solve", "--against", "sheeprl", "--peer-python", sys.executable, "--minutes", "3"]
    assert bench.main([*args, "--precision", "fp32", "--json", str(tmp_path / "a.json")]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    ours, equal, own = result["attempts"].values()
    assert (ours["solved"], ours["env_steps"], len(ours["episodes"])) == (True, 1000, 5)
    assert 0 < ours["seconds"] <= ours["ran_seconds"] < 180
    assert (equal["solved"], equal["seconds"]) == (False, None)
    assert (equal["best_mean"], equal["best_env_steps"], equal["updates"]) == (-8995.0, 1400, 7)
    assert "not solved" in capsys.readouterr().out
    run, flags = RunConfig(), equal["about"]["flags"]
    assert 2 * float(flags["--prefill"]) == run.prefill
    assert float(flags["--replay-ratio"]) / 2 == pytest.approx(1 / run.update_every)
    assert (flags["--action-repeat"], flags["--batch"], flags["--length"], flags["--depth"]) == ("2", "16", "16", "16")
    assert not {"--batch", "--length", "--replay-ratio"} & own["about"]["flags"].keys()


@pytest.mark.parametrize(
    ("args", "fix"),
    [
        (["--preset", "1mm"], "choose one of"),
        (["--repeat", "0"], "at least 1"),
        (["--threads", "-1"], "0 or more"),
        (["--loop", "-1"], "--loop must be 200 or more, or 0 for none, not -1"),
        (["--loop", "199"], "--loop must be 200 or more"),
        (["--solve", "--minutes", "0"], "--minutes must be above 0, not 0"),
        (["--solve", "--minutes", "nan"], "--minutes must be above 0"),
        (["--solve", "--seed", "-1"], "--seed must be 0 or more"),
        (["--minutes", "1"], "--minutes says nothing of the timing of updates"),
        (["--against", "sheeprl", "--seed", "1"], "add --solve"),
        (["--only", "nobody"], "--only says nothing"),
        (["--solve", "--csv", "a.csv"], "leave --csv"),
        (["--solve", "--device", "cuda"], "trains on the CPU"),
        (["--solve", "--only", "nobody"], "there are: ours tiny"),
        (["--solve", "--against", "sheeprl", "--peer-python", "no/such/python"], "make it with"),
        (["--against", "sheeprl", "--device", "cuda"], "leave --device away"),
        (["--device", "cuda:1", "--loop", "200"], "say --device cuda"),
        (["--against", "sheeprl", "--preset", "tiny"], "choose one of 1m, 12m"),
        (["--against", "sheeprl", "--batch", "17"], "at most 1024"),
        (
            ["--against", "sheeprl", "--peer-python", "no/such/python"],
            "pip install -r benchmarks/peers/sheeprl-requirements.txt",
        ),
    ],
)
def test_mistakes_name_the_fix(args: list[str], fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        bench.main(args)


@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_a_folder_is_no_file_for_the_result_and_nothing_is_measured(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_alone", None)
    with pytest.raises(UserError, match="is a folder; name a file"):
        bench.main([flag, str(tmp_path)])
