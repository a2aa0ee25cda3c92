"""Extensions: the example package, really installed, in every place where its names stand; and packages that fail.

What happened once: a new reward was written in 15 minutes, all tests were green, and it had no effect. Here a reward
that is configured either changes the gradient or is an error or a warning that names its package.
"""

import sys
from importlib.metadata import entry_points

import numpy as np
import pytest

from search_r3_mteb import extensions
from search_r3_mteb.extensions import (
    BASELINES,
    REFRESH_POLICIES,
    REGISTRIES,
    REWARDS,
    TASKS,
    ExtensionError,
)

REWARD = """from search_r3_mteb.extensions import REWARDS
@REWARDS.register("{0}")
def {0}(graded, rankings, settings):
    {1}
"""


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_the_names_are_there_without_importing_the_package(example):
    assert [registry.names() for registry in REGISTRIES] == [["recall"], ["retrieved"], ["faq"], ["short"], ["hashing"]]
    assert "search_r3_extension" not in sys.modules
    said = dict(extensions.installed())
    assert said["reward"] == (
        "recall: the package search-r3-extension 0.1.0 (entry point search_r3_extension.reward:recall)"
    )
    assert set(said) == {"reward", "refresh policy", "task", "profile", "baseline"}


def test_without_the_package_there_are_no_names(registries):
    assert [registry.names() for registry in REGISTRIES] == [[]] * 5
    assert list(extensions.installed()) == []
    assert not entry_points(group="search_r3_mteb.rewards")


def test_reserved_names_are_those_of_our_own():
    from search_r3_mteb.encoder.model_names import bundled_names
    from search_r3_mteb.evaluation.systems import BM25
    from search_r3_mteb.evaluation.tasks import BEIR, LOCAL_TASKS
    from search_r3_mteb.expansion.methods import METHODS
    from train.corpus_cache.refresh_policies import POLICIES
    from train.losses.rewards import REWARD_FUNCTIONS

    bundled = bundled_names()
    assert bundled == ["mini", "nano", "smol"]
    assert set(REWARDS.reserved) == set(REWARD_FUNCTIONS)
    assert set(REFRESH_POLICIES.reserved) == set(POLICIES)
    assert set(TASKS.reserved) == {*LOCAL_TASKS, BEIR.rstrip(":")}
    assert set(BASELINES.reserved) == {BM25, *METHODS, *bundled}


def test_a_decorator_alone_is_enough_in_one_process(registries):
    @REWARDS.register("half")
    def half(graded, rankings, settings):
        return np.full(len(graded.gains), 0.5)

    assert REWARDS.names() == ["half"]
    assert REWARDS.find("half").function is half
    assert "test_extensions" in REWARDS.find("half").origin


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a:b", "1st", "naïve", None])
def test_a_name_that_cannot_stand_in_a_configuration_is_refused(registries, name):
    with pytest.raises(ExtensionError, match="cannot stand in a configuration"):
        REWARDS.register(name)


def test_names_of_our_own_are_refused(package):
    with pytest.raises(ExtensionError, match=r"'ndcg', the name that a decorator gives .* this package's own"):
        REWARDS.register("ndcg")
    package("thief", "search_r3_mteb.tasks", {"hopworld": "own_thief:x"}, "x = 1\n")
    with pytest.raises(ExtensionError, match=r"'hopworld', the name that the package thief 1\.0 .*would be used inste"):
        TASKS.find("hopworld")


def test_two_of_one_name_are_refused(package, example):
    REWARDS.register("twice")(lambda *_: 1)
    with pytest.raises(ExtensionError, match=r"Two extensions register the reward 'twice': .* and builtins:len"):
        REWARDS.register("twice")(len)
    package("first", "search_r3_mteb.rewards", {"novelty": "own_first:novelty"}, REWARD.format("novelty", "return 1"))
    assert REWARDS.find("novelty").origin.startswith("the package first 1.0")
    package("second", "search_r3_mteb.rewards", {"novelty": "own_second:novelty"}, REWARD.format("novelty", "return 0"))
    with pytest.raises(ExtensionError, match=r"2 packages bring a reward 'novelty': the package first 1\.0 .*second 1"):
        REWARDS.find("novelty")
    REWARDS.register("recall")(lambda graded, rankings, settings: 0)
    with pytest.raises(
        ExtensionError, match=r"the package search-r3-extension 0\.1\.0 .* Two extensions register the r"
    ):
        REWARDS.find("recall")


def test_a_cell_that_runs_again_replaces_its_own(registries):
    for value in (1, 2):

        @REWARDS.register("cell")
        def cell(graded, rankings, settings, value=value):
            return value

    assert REWARDS.find("cell")(None, None, None) == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", r"cannot be loaded: ModuleNotFoundError: No module named 'no_such_library'"),
        ("def other(): ...", r"cannot be loaded: AttributeError: .*broken"),
        ("raise SystemExit(3)", r"cannot be loaded: SystemExit: 3"),
        ("def broken(): ...", r"is not registered: write @REWARDS\.register\('broken'\) over it"),
        (REWARD.format("other", "return 1") + "broken = other\n", r"is registered as 'other': write @REWARDS"),
    ],
)
def test_a_broken_package_is_named_and_stops_only_what_uses_it(package, code, said):
    package("bad", "search_r3_mteb.rewards", {"broken": "own_bad:broken"}, code)
    where = r"The reward 'broken' of the package bad 1\.0 \(entry point own_bad:broken\) "
    with pytest.raises(ExtensionError, match=where + said):
        REWARDS.find("broken")
    assert [kind for kind, line in extensions.installed() if line.startswith("broken: cannot be used. ")] == ["reward"]
    from train.config.grpo import RewardSettings

    assert RewardSettings().weights["dcg_scaled"] == 1.0


# ---- configuration ---------------------------------------------------------------------------------------------------


def rl(folder, *overrides, text=""):
    from tests.train.loops import RL, config
    from train.config.stages import RlConfig

    return config(RL + text, folder, overrides, RlConfig)


def test_a_table_is_typed_and_written_again(example, tmp_path):
    from train.config.loading import differences, dump, fingerprint, flatten, load_config
    from train.config.stages import RlConfig

    table = "\n[reward.own.recall]\nweight = 2\nranks = 3\n[corpus_cache.own.retrieved]\npositive_weight = 3\n"
    found = rl(tmp_path / "run", "corpus_cache.policy=retrieved", "reward.own.recall.ranks=5", text=table)
    recall = found.reward.own.tables["recall"]
    assert (recall.weight, recall.ranks) == (2.0, 5)
    assert found.reward.weights["recall"] == 2.0
    assert found.corpus_cache.own_settings.positive_weight == 3.0
    assert found.corpus_cache.needs_originals, "it uses the map"
    (tmp_path / "again.toml").write_text(dump(found, documented=True))
    assert load_config(tmp_path / "again.toml", cls=RlConfig) == found
    assert flatten(found)["reward.own.recall.ranks"] == 5
    other = rl(tmp_path / "run", "corpus_cache.policy=retrieved", "reward.own.recall.ranks=6", text=table)
    assert differences(flatten(found), flatten(other)) == ["reward.own.recall.ranks: 5 -> 6"]
    assert fingerprint(found) != fingerprint(other)
    plain = flatten(rl(tmp_path / "run"))
    assert not [key for key in plain if ".own" in key], "runs without extensions are as they were"
    removed = rl(tmp_path / "run", "reward.own.recall=none", "corpus_cache.own.retrieved=none", text=table)
    assert flatten(removed) == plain


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.own.recal.weight=1", r"\[reward\.own\]: There is no reward 'recal'\. Did you mean 'recall'\?"),
        (
            "reward.own.novelty.weight=1",
            r"There is no reward 'novelty'.*installed extensions: recall.*search_r3_mteb\.re",
        ),
        ("reward.own.ndcg.weight=1", r"The reward 'ndcg' is one of this package's own, not an extension"),
        ("reward.recall=1", r"\[reward\] recall: there is no such key"),
        ("reward.own.recall.weight=0", r"recall\.weight: got 0, but it must be above 0.*search-r3-extension 0\.1\.0"),
        ("reward.own.recall.ranks=5", r"recall\.weight: is missing"),
        ("reward.own.recall={weight=1, rank=5}", r"recall\.rank: there is no such key\. Did you mean 'ranks'\?"),
        (
            'reward.own.recall={weight=1, ranks="5"}',
            r"recall\.ranks: got \"5\" \(text\), but it must be a whole number",
        ),
        ("reward.own.recall={weight=1, ranks=0}", r"recall\.ranks: got 0, but it must be at least 1"),
        ("reward.own.recall=1", r"recall: got 1, but this is a section"),
        ("reward.own=1", r"\[reward\.own\]: got 1, but this is a section"),
        (
            "corpus_cache.policy=retrived",
            r"policy: got \"retrived\".*\"full\", \"frozen\", \"retrieved\"\. Did you mean 're",
        ),
        (
            "corpus_cache.own.retrieved.positive_weight=2",
            r"own\.retrieved would have no effect: policy = \"local\+map\"",
        ),
        ("corpus_cache.own.retrieved.hops=2", r"retrieved\.hops: there is no such key"),
        (
            "model.profile=shrot",
            r"\[model\] profile: There is no profile 'shrot'\. Did you mean 'short'\? Installed extensions: short\.",
        ),
    ],
)
def test_what_is_configured_and_not_used_is_an_error(example, tmp_path, override, said):
    from train.config.loading import ConfigError

    with pytest.raises(ConfigError, match=said):
        rl(tmp_path / "run", override)


def test_none_is_a_value_where_the_settings_of_an_extension_list_it(registries, tmp_path):
    from typing import Literal

    from train.config.settings import OwnRewardSettings

    class Settings(OwnRewardSettings):
        scale: Literal["linear", "none"] = "linear"

    REWARDS.register("scaled", settings=Settings)(lambda *_: 0)
    overrides = ["reward.own.scaled.weight=1", "reward.own.scaled.scale=none"]
    assert rl(tmp_path / "run", *overrides).reward.own.tables["scaled"].scale == "none"


def test_settings_of_another_class_are_refused(registries, tmp_path):
    from train.config.settings import OwnSettings

    class WithoutWeight(OwnSettings):
        scale: float = 1.0

    REWARDS.register("weightless", settings=WithoutWeight)(lambda *_: 0)
    with pytest.raises(ValueError, match="WithoutWeight, which does not derive from OwnRewardSettings"):
        rl(tmp_path / "run", "reward.own.weightless.scale=1.0")


def test_needed_settings_of_a_policy_are_asked_for(registries):
    from train.config.corpus_cache import CorpusCacheSettings
    from train.config.settings import OwnSettings

    class Needs(OwnSettings):
        rows: int

    REFRESH_POLICIES.register("needy", settings=Needs)(lambda *_: [])
    with pytest.raises(ValueError, match=r'policy = "needy" needs rows: add a table \[corpus_cache\.own\.needy\]'):
        CorpusCacheSettings(policy="needy")
    assert CorpusCacheSettings(policy="needy", own={"needy": {"rows": 3}}).own_settings.rows == 3


def test_help_and_dry_run_name_what_is_installed(example, tmp_path, capsys):
    from train.config.stages import RlConfig
    from train.run.command import parse

    with pytest.raises(SystemExit):
        parse("rl.py", RlConfig, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Rewards: installed extensions: recall. Refresh policies: installed extensions: retrieved." in said
    notes = rl(tmp_path / "run", "reward.own.recall.weight=0.5").extension_notes()
    assert notes == [
        "reward 'recall' of the package search-r3-extension 0.1.0 (entry point search_r3_extension.reward:recall) "
        "counts 0.5 times",
        'installed, and not used here: corpus_cache.policy = "retrieved"',
    ]
    assert rl(tmp_path / "run").extension_notes() == [
        'installed, and not used here: [reward.own.recall], corpus_cache.policy = "retrieved"'
    ]


# ---- rewards ---------------------------------------------------------------------------------------------------------


def rewarded(name, **settings):
    """The rewards of three rollouts under `reward.own.NAME`."""
    from tests.train.losses.test_rewards import JUDGEMENTS, RANKINGS
    from train.config.grpo import RewardSettings
    from train.losses.rewards import reward

    own = {name: {"weight": 0.5} | settings}
    return reward(RANKINGS, JUDGEMENTS, RewardSettings(k=3, forced_penalty=0, own=own))


def test_the_example_s_reward_by_hand(example):
    """q1 has two relevant documents, both among the first three of rollout 0; q2's is rollout 1's first."""
    found = rewarded("recall")
    assert found.parts["recall"].tolist() == [1.0, 1.0, 0.0]
    np.testing.assert_allclose(found.total - found.parts["dcg_scaled"], [0.5, 0.5, 0.0])
    assert rewarded("recall", ranks=2).parts["recall"].tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return graded.gains", r"gave an array of shape \(3, 3\), not \(3,\)"),
        ("return [0.1, 1.5, 0]", r"gave 1\.5 for rollout 1; a reward lies between 0 and 1"),
        ("return [0.1, 0, float('nan')]", r"gave nan for rollout 2"),
        ("return settings.scale", r"failed with AttributeError: .*scale"),
        ("raise KeyError('q9')", r"failed with KeyError: 'q9'"),
    ],
)
def test_a_reward_that_cannot_be_one_stops_the_run_by_its_package(package, body, said):
    code = REWARD.format("bad", body)
    package("mine", "search_r3_mteb.rewards", {"bad": "own_mine:bad"}, code)
    with pytest.raises(
        ExtensionError, match=rf"reward 'bad' of the package mine 1\.0 \(entry point own_mine:bad\) {said}"
    ):
        rewarded("bad")
    from train.config.grpo import RewardSettings
    from train.losses.rewards import REWARD_FUNCTIONS

    assert RewardSettings().weights.keys() == REWARD_FUNCTIONS.keys(), "what is not configured is not run"


# ---- refresh policies ------------------------------------------------------------------------------------------------


def chosen(budget=4, **settings):
    """The rows that the configured policy chooses: 5 was retrieved three times, 7 and 8 are positives."""
    from tests.train.corpus_cache.test_refresh_policies import corpus, hits
    from train.config.corpus_cache import CorpusCacheSettings
    from train.corpus_cache.refresh_policies import RetrievalCounts, policy_of

    counts = RetrievalCounts.of(hits([[5, 2], [5, 1], [5, 3]], [[7], [7], [8]]))
    policy = policy_of(CorpusCacheSettings(**settings))
    return policy.select(corpus(), counts, budget).tolist()


def test_the_example_s_policy_by_hand(example):
    assert chosen(policy="retrieved") == [7, 8, 5, 1]
    assert chosen(policy="retrieved", own={"retrieved": {"positive_weight": 0.0}}) == [5, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("[0, 12]", "chose row 12, but the corpus has rows 0 to 11"),
        ("[-1]", "chose row -1"),
        ("[3, 3]", "chose a row twice"),
        ("[1, 2, 3, 4, 5]", "chose rows of 5 tokens, but the budget is 4"),
        ("[0.5]", r"gave float64 of shape \(1,\)"),
        ("[[1]]", r"gave int64 of shape \(1, 1\)"),
        ("1 / 0", "failed with ZeroDivisionError"),
    ],
)
def test_a_policy_that_cannot_be_one_stops_the_run_by_its_package(package, rows, said):
    code = "from search_r3_mteb.extensions import REFRESH_POLICIES\n@REFRESH_POLICIES.register('mine')\n"
    code += f"def mine(corpus, counts, budget, settings):\n    return {rows}\n"
    package("mine", "search_r3_mteb.refresh_policies", {"mine": "own_mine:mine"}, code)
    with pytest.raises(ExtensionError, match=rf"refresh policy 'mine' of the package mine 1\.0 .* {said}"):
        chosen(policy="mine")
    assert chosen(policy="none") == []
