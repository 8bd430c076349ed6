"""Which cells a command or a file asks for, and that a mistake is found before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamer_lpm.compare import plan as plans
from dreamer_lpm.compare.plan import ARMS, Key, Machine, Plan, make_plan
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.types import UserError
from tests.tiny_run import TINY


def plan(
    *, methods: list[str] | None = None, arms: list[str] | None = None, seeds: Any = None, file: Path | None = None,
    **common: Any,
) -> Plan:  # fmt: skip
    """A plan from flags; ``common`` are flags for all cells."""
    return make_plan(
        file=file, methods=methods, arms=arms, seeds=seeds, preset_name=None, flags=lambda base: replace(base, **common)
    )


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "grid.toml").write_text(text)
        return tmp_path / "grid.toml"

    return write


def test_cells_are_methods_by_arms_by_seeds_with_the_same_seeds() -> None:
    keys = list(plan(methods=["none", "lpm"], arms=["sham", "remote"], seeds=3).cells())
    assert len(set(keys)) == 12
    for method in ("none", "lpm"):
        for arm in ("sham", "remote"):
            assert [k.seed for k in keys if (k.method, k.arm) == (method, arm)] == [0, 1, 2]
    assert {k.seed for k in keys[:4]} == {0}  # a grid stopped early has whole comparisons


def test_a_list_of_seeds_is_the_seeds() -> None:
    assert plan(methods=["none"], arms=["off"], seeds=[7, 3]).seeds == (7, 3)


@pytest.mark.parametrize(
    ("arm", "tv"),
    [
        ("off", None),
        ("sham", TVSpec(trigger="remote", control="sham")),
        ("remote", TVSpec(trigger="remote")),
        ("remote_k1", TVSpec(trigger="remote", pool=1)),
        ("action", TVSpec(trigger="action")),
        ("action_sham", TVSpec(trigger="action", control="sham")),
    ],
)
def test_arms(arm: str, tv: TVSpec | None) -> None:
    otherwise = RunConfig(tv=TVSpec(trigger="always", pool=9, control="sham"))
    asked = replace(plan(methods=["lpm"], arms=[arm], seeds=1), common=otherwise)
    cfg = asked.config(Key("lpm", arm, 5))
    assert cfg.env().tv == tv
    assert cfg.seed == 5
    assert asked.has_tv(arm) == (tv is not None and tv.control is None)


def test_every_registered_bonus_is_a_method() -> None:
    asked = plan(methods=list(REGISTRY), arms=["off"], seeds=1)
    assert [asked.config(k).agent.curiosity for k in asked.cells()] == list(REGISTRY)


def test_shams_are_found_by_their_settings(write: Any) -> None:
    asked = plan(
        file=write("""
seeds = 1
[methods.none]
[arms]
off = {}
sham = {}
remote = {}
remote_k1 = {}
action = {}
corner = {noisy_tv = true, tv = {trigger = "remote", region = "patch"}}
long = {noisy_tv = true, time_limit = 50, tv = {trigger = "remote"}}
""")
    )
    shams = {arm: asked.sham_of(arm) for arm in asked.arms}
    assert shams == {
        "off": None, "sham": None, "remote": "sham", "remote_k1": "sham", "action": None, "corner": "sham",
        "long": None,
    }  # fmt: skip


def test_a_file_defines_methods_arms_and_settings(write: Any) -> None:
    file = write("""
preset = "tiny"
seeds = [4]
[common]
steps = 99
lpm_eta = 0.5
[methods.lpm]
[methods.lpm_strong]
curiosity = "lpm"
lpm_eta = 3
[arms.remote]
tv = {region = "patch"}
""")
    asked = plan(file=file)
    assert [k.name for k in asked.cells()] == ["lpm-remote-4", "lpm_strong-remote-4"]
    weak, strong = (asked.config(k) for k in asked.cells())
    assert (weak.steps, weak.agent.curiosity, weak.agent.lpm_eta) == (99, "lpm", 0.5)
    assert (strong.agent.curiosity, strong.agent.lpm_eta) == ("lpm", 3.0)
    assert weak.tv == TVSpec(trigger="remote", region="patch")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tv": TVSpec(pool=5)}, "'none' before 'remote' has its own tv.pool, None: leave --tv.pool out, or"),
        ({"tv": TVSpec(control="sham")}, "'none' before 'remote' has its own tv.control"),
        (
            {"agent": replace(TINY.agent, curiosity="rnd")},
            "'none' before 'remote' has its own curiosity, none: leave",
        ),
    ],
)
def test_a_flag_that_an_arm_or_a_method_would_drop_is_refused(flags: Any, message: str) -> None:
    with pytest.raises(UserError) as told:
        make_plan(
            file=None, methods=["none"], arms=["remote"], seeds=1, preset_name=None,
            flags=lambda base: replace(TINY, **flags),
        )  # fmt: skip
    assert message in str(told.value)


def test_an_arm_may_differ_from_what_the_file_says_of_all(write: Any) -> None:
    file = write("arms = ['remote']\nseeds = 1\n[common]\nbatch_size = 8\n[methods.big]\nbatch_size = 16\n")
    got = plan(file=file, tv=TVSpec(region="patch"))
    assert (got.config(Key("big", "remote", 0)).batch_size, got.common.tv.region) == (16, "patch")
    file = write(
        "seeds = 1\nmethods = ['none']\n[common]\ntv = {region = 'patch'}\n[arms.remote]\ntv = {region = 'quadrant'}\n"
    )
    assert plan(file=file).config(Key("none", "remote", 0)).tv.region == "quadrant"


@pytest.mark.parametrize(
    ("common", "message"),
    [
        ("tv = {pool = 10}", "The arm 'remote' has its own tv.pool, None: leave tv.pool out of [common], or"),
        ("tv = {trigger = 'passive'}", "The arm 'remote' has its own tv.trigger, remote: leave tv.trigger out"),
        ("curiosity = 'icm'", "own curiosity, none: leave curiosity out of [common], or write it into [methods.none]."),
    ],
)
def test_what_one_of_our_arms_or_methods_would_drop_of_a_file_is_refused(write: Any, common: str, message: str) -> None:
    file = write(f"arms = ['remote']\nmethods = ['none']\nseeds = 1\n[common]\n{common}\n")
    with pytest.raises(UserError) as told:
        plan(file=file)
    assert message in str(told.value)


def test_what_has_no_effect_in_any_cell_is_told_once() -> None:
    assert plan(methods=["none"], arms=["off", "remote"], seeds=2, steps=300).vain() == [
        "Nothing will be learned: 300 steps end within the first 1,000, which only fill the memory (--prefill, "
        "--seq-length, --num-envs)."
    ]
    assert plan(methods=["none"], arms=["off", "remote"], seeds=1, tv_images="photos").vain() == []


def test_an_arms_words_name_the_pictures_that_auto_became() -> None:
    made = plan(methods=["none"], arms=["remote"], seeds=1)
    assert "shows photos" in made.words("remote", Machine("cpu", "fp32", 1, "photos"))
    assert "shows auto" in made.words("remote", Machine("cpu", "fp32", 1))


def test_an_empty_table_is_a_case_with_the_settings_of_all(write: Any) -> None:
    file = write('seeds = 1\n[common]\nsteps = 99\ncuriosity = "lpm"\n[methods.mine]\n[arms.plain]\n')
    asked = plan(file=file)
    (case,) = asked.cells()
    assert case.name == "mine-plain-0"
    assert (asked.config(case).steps, asked.config(case).agent.curiosity) == (99, "lpm")


def test_flags_win_over_the_file(write: Any) -> None:
    file = write('methods = ["none", "lpm"]\narms = ["off"]\nseeds = 9\n[common]\nsteps = 99\n')
    asked = plan(file=file, methods=["lpm"], seeds=2, steps=7)
    assert [k.name for k in asked.cells()] == ["lpm-off-0", "lpm-off-1"]
    assert asked.common.steps == 7


FILE_MISTAKES = {
    "key": ("stepz = 3", "may hold methods, arms, seeds, preset, common, not 'stepz'"),
    "common": ('arms = ["off"]\nmethods = ["none"]\n[common]\nstepz = 3', "did you mean 'steps'"),
    "method": ('arms = ["off"]\n[methods.mine]\nlpm_etta = 3', "The method 'mine': Unknown setting 'lpm_etta'"),
    "arm": ('methods = ["none"]\n[arms.mine]\ntv = {trigger = "magic"}', "The arm 'mine': 'tv.trigger' must be"),
    "range": ('methods = ["none"]\n[arms.mine]\ntv = {pool = 0}', "The arm 'mine': a TV pool of 0 pictures"),
    "table": ("methods = 3\narms = ['off']", "'methods' must be a table of settings"),
    "unknown": ("methods = ['lmp']\narms = ['off']", "Unknown method 'lmp'; choose from: none, prediction_error"),
    "curiosity": ("arms = ['off']\n[methods.mine]\ncuriosity = 'x'", "Method 'mine': Unknown curiosity 'x'"),
    "members": (
        "arms = ['off']\n[methods.mine]\ncuriosity = 'disagreement'\nbonus.members = 1",
        "Method 'mine': disagreement needs bonus.members of 2 or more, not 1",
    ),
    "space": (
        "arms = ['off']\nmethods = ['lpm', 'ama']\n[common]\nbonus.error_space = 'kl'",
        "Method 'ama': 'ama' needs an error with a variance",
    ),
    "seeds": ("methods = ['none']\narms = ['off']\nseeds = 'x'", "seeds must be whole numbers"),
    "same": ("methods = ['none']\narms = ['off']\nseeds = [1, 1]", "each only once"),
    "zero": ("methods = ['none']\narms = ['off']\nseeds = 0", "at least one"),
    "seed": ("methods = ['none']\narms = ['off']\n[common]\nseed = 3", "leave 'seed' out"),
    "own seed": ("arms = ['off']\n[methods.mine]\ncuriosity = 'lpm'\nseed = 3", "leave 'seed' out"),
    "two sources": (
        "methods = ['none']\n[common]\ntv_images = 'static'\n[arms.mine]\ntv = {source = 'photos'}",
        "The arm 'mine': tv_images (static) and tv.source (photos) say two things",
    ),
    "name": ("arms = ['off']\n[methods.'<script>']\ncuriosity = 'lpm'", "Name the method with letters"),
    "path": ("methods = ['none']\n[arms.'../x']\nnoisy_tv = false", "Name the arm with letters"),
    "syntax": ("methods = [", "cannot be read as .toml"),
    "env": ("methods = ['none']\narms = ['off']\n[common]\nenv_name = 'Pendulumm-v1'", "did you mean"),
    "none": ("arms = ['off']", "Which methods? Name them with --methods"),
    "folder": (
        "seeds = 1\n[methods.a]\ncuriosity = 'lpm'\n[methods.a-b]\ncuriosity = 'lpm'\n"
        "[arms.b-c]\nnoisy_tv = false\n[arms.c]\nnoisy_tv = false",
        "Two cells would share the folder a-b-c-0",
    ),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_a_mistake_is_found_before_anything_starts(name: str, write: Any) -> None:
    text, message = FILE_MISTAKES[name]
    with pytest.raises(UserError) as found:
        plan(file=write(text))
    assert message in str(found.value)


def test_auto_is_decided_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(methods=["lpm"], arms=["remote", "sham"], seeds=1, device="cpu", precision="auto")
    monkeypatch.setattr(plans, "settled", lambda cfg: replace(cfg, precision="bf16", threads=2))

    class Found:
        used = "photos"

    monkeypatch.setattr(plans, "load_images", lambda source, folder: (None, Found))
    machine = asked.machine()
    assert machine == Machine("cpu", "bf16", 1, "photos")
    assert asked.machine(Machine("cpu", "fp32", 3, "digits")) == Machine("cpu", "fp32", 3, "digits")
    settled = [machine.settle(asked.config(k)) for k in asked.cells()]
    assert [(c.device, c.precision, c.threads, c.tv_images) for c in settled] == [
        ("cpu", "bf16", 1, "photos"),
        ("cpu", "bf16", 1, "photos"),
    ]


def test_what_was_asked_for_by_name_stays() -> None:
    cfg = replace(TINY, noisy_tv=True, precision="fp32", threads=2, tv_images="static")
    assert Machine("cpu", "bf16", 1, "photos").settle(cfg) == cfg
    digits = RunConfig(noisy_tv=True, tv=TVSpec(source="digits"))
    assert Machine("cpu", "bf16", 1, "photos").settle(digits).env().tv == TVSpec(source="digits")


def test_named_arms_can_all_be_made() -> None:
    plan(methods=["none"], arms=list(ARMS), seeds=1, env_name="CartPole-v1")


def test_an_arm_is_written_over_a_method() -> None:
    plan = Plan(TINY, {"m": {"seq_length": 4, "batch_size": 5}}, {"a": {"seq_length": 3}}, (0,))
    cfg = plan.config(Key("m", "a", 0))
    assert (cfg.seq_length, cfg.batch_size) == (3, 5)
