"""Plans of comparisons: every key is known, of its kind, and read."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan, plan_of, read_plan

WHOLE = """
tasks = ["hopworld", "stdlib"]
output = "runs/x"
split = "dev"
baseline = "bm25"
seed = 3
settings = {dtype = "float32"}
budgets = [8]
control = "other"

[[systems]]
model = "nano"
label = "our nano"
mode = "both"
budgets = [16, 64]
control = ["filler", "perceptron"]
settings = {temperature = 0.5, seed = 1}
train = "data/own"
train_split = "dev"
baseline = "our nano"

[[systems]]
model = "bm25"
"""


def written(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_whole_plan_is_read(tmp_path):
    plan = read_plan(written(tmp_path, WHOLE))
    first = ComparedSystem(
        *("nano", "our nano", "both", {"temperature": 0.5, "seed": 1}, ("filler", "perceptron"), (16, 64)),
        *("data/own", "dev", "our nano"),
    )
    common = {"settings": {"dtype": "float32"}, "budgets": (8,), "control": ("other",)}
    assert plan == ComparisonPlan(
        (first, ComparedSystem("bm25")), ("hopworld", "stdlib"), "dev", Path("runs/x"), "bm25", seed=3, **common
    )
    assert plan.baselines() == {"our nano": "our nano", "bm25": "bm25"}
    assert replace(plan, baseline=None).baselines() == {"our nano": "our nano", "bm25": "our nano"}
    for each in fields(ComparedSystem):  # every key stands in the plan above, with another value than the default
        assert getattr(first, each.name) != each.default or each.name == "mode"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budgets = [16", "budget = [16", r"entry 1: key 'budget' does not exist: did you mean 'budgets'\?"),
        ('\nsplit = "dev"', '\nsplitt = "dev"', r"plan.toml: key 'splitt' does not exist: did you mean 'split'\?"),
        ("temperature = 0.5", "temprature = 0.5", r"setting 'temprature' .* did you mean 'temperature'\?"),
        ("temperature = 0.5", 'mode = "direct"', "settings.mode: a comparison has its own"),
        ('"filler"', '"fillers"', r"control 'fillers' of nano does not exist: did you mean 'filler'\?"),
        ('control = "other"', 'control = "perceptron"', "control 'perceptron' does not exist; there is filler, other"),
        ('"both"', '"boths"', "mode = 'boths' of nano is not one of both, reason, direct"),
        ("budgets = [16, 64]", "budgets = [-1]", "-1 is negative"),
        ("budgets = [8]", "budgets = [-8]", "-8 is negative"),
        ("budgets = [16, 64]", 'budgets = ["16"]', r"budgets = \['16'\] is not a list of whole numbers"),
        ("budgets = [16, 64]", "budgets = [true]", "is not a list of whole numbers"),
        ('mode = "both"', 'mode = "direct"', "so budgets change nothing"),
        ('train = "data/own"', "", "belong together"),
        ('"perceptron"', '"other"', "belong together"),
        ('mode = "both"', 'mode = "reason"', "the perceptron stands on direct vectors"),
        ("temperature = 0.5", "max_reasoning_tokens = 5", "say the same thing"),
        ('model = "bm25"', 'label = "x"', "entry 2: has no model"),
        ('model = "bm25"', 'model = "our nano"', "Two systems are called our nano"),
        ('baseline = "bm25"', 'baseline = "bm52"', r"baseline = 'bm52' does not exist: did you mean 'bm25'\?"),
        (
            'baseline = "our nano"',
            'baseline = "my nano"',
            r"baseline = 'my nano' does not exist: did you mean 'our nano'",
        ),
        ('tasks = ["hopworld", "stdlib"]', "", "2 systems and 0 tasks"),
        ('tasks = ["hopworld", "stdlib"]', "tasks = [1]", r"tasks = \[1\] is not a list of texts"),
        ("seed = 3", "seed = -3", "seed = -3 is not a whole number from 0"),
        ("seed = 3", "seed = ", "plan.toml is not TOML"),
        ('model = "nano"', "model = 3", "model = 3 is not a text"),
        ("settings = {temperature = 0.5, seed = 1}", "settings = 3", "settings = 3 is not a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert WHOLE.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read_plan(written(tmp_path, WHOLE.replace(old, new)))


def test_no_file_and_no_systems(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="0 systems and 1 tasks"):
        read_plan(written(tmp_path, 'tasks = ["hopworld"]'))
    with pytest.raises(ValueError, match=r"systems = 3 is not \[\[systems\]\] tables"):
        read_plan(written(tmp_path, "systems = 3"))


def test_a_command_line_compares_with_all_controls_unless_told():
    assert plan_of(["nano"], ["hopworld"]).control == ("filler", "other", "shuffled", "empty")
    assert plan_of(["nano"], ["hopworld"], [8], ["other"]).control == ("other",)
    assert plan_of(["nano"], ["hopworld"], [8], ["none"]).control == ()
    assert plan_of(["nano", "bm25"], ["hopworld"], [8]).budgets == (8,)
    with pytest.raises(ValueError, match="excludes the other controls"):
        plan_of(["nano"], ["hopworld"], [], ["none", "other"])


def test_the_shipped_example_is_a_plan():
    plan = read_plan(Path(__file__).parents[2] / "results" / "comparison" / "example.toml")
    assert plan.systems
    assert plan.tasks
