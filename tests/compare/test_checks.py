"""What a comparison refuses before anything runs: systems that are not whole, and what would change nothing."""

import shutil

import pytest

from search_r3_mteb.compare.checks import check_plan, settings_for
from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan, plan_of


@pytest.fixture
def names(models):
    """An encoder, a writer with it, and Rocchio on it, by name."""
    encoder, writer = models / "minis", models / "smol"
    return {"encoder": str(encoder), "hyde": f"hyde:{writer}+{encoder}", "rocchio": f"rocchio:{encoder}"}


def made(*systems, **common):
    entries = [each if isinstance(each, ComparedSystem) else ComparedSystem(each) for each in systems]
    return ComparisonPlan(tuple(entries), ("hopworld",), **common)


def test_a_typo_in_a_later_model_is_told_before_the_first_runs(names, tmp_path, call):
    output = tmp_path / "out"
    code, _, err = call(
        "compare", "--models", "nano", "--models", tmp_path / "typo", "--task", "hopworld:500", "--output", output
    )
    assert (code, "typo" in err) == (2, True)
    assert not (output / "queries").exists()
    with pytest.raises(ValueError, match=r"(?s)2 models cannot be run, and nothing was.*one: .*two: "):
        check_plan(made("bm25", f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}"))
    check_plan(made("bm25", *names.values()))  # the control: these are there


def test_a_model_without_its_weights_is_told_before_the_first_runs(names, models, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(models / "smol", broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or truncated"):
        check_plan(made("bm25", f"hyde:{broken}+{models / 'minis'}"))
    with pytest.raises(ValueError, match=r"no token .* no place to read a vector from"):
        check_plan(made("bm25", str(models / "smol")))


@pytest.mark.parametrize(
    ("systems", "common", "message"),
    [
        (["bm25", "rocchio"], {"budgets": (64,)}, r"budgets \(64\) would change nothing"),
        (["bm25", "rocchio"], {"control": ("filler",)}, r"control \(filler\) would change nothing"),
        (["bm25", "rocchio"], {"settings": {"temperature": 0.9}}, "temperature would change nothing"),
        (["hyde", "rocchio"], {"settings": {"max_length": 16}}, "max_length would change nothing"),
        (["hyde", "rocchio"], {"settings": {"task_prompts": False}}, "task_prompts would change nothing"),
        (["bm25"], {"settings": {"device": "cpu"}}, "device would change nothing"),
        (["nano"], {"seed": 3}, r"seed \(3\) would change nothing"),
    ],
)
def test_what_no_system_uses_is_refused(names, systems, common, message):
    plan = made(*(names.get(each, each) for each in systems), **common)
    with pytest.raises(ValueError, match=message):
        check_plan(plan)
    check_plan(made(*(each.model for each in plan.systems)))


@pytest.mark.parametrize(
    ("model", "entry", "message"),
    [
        ("hyde", {"mode": "direct"}, "mode='direct': .* always writes about a query"),
        ("bm25", {"mode": "reason"}, "it never reasons"),
        ("rocchio", {"mode": "reason"}, "it never reasons"),
        ("rocchio", {"budgets": (4,)}, "budgets change nothing"),
        ("rocchio", {"control": ("filler",)}, "no reasoning to exchange"),
        ("nano", {"mode": "direct", "control": ("filler",)}, "no reasoning to exchange"),
        ("nano", {"mode": "direct", "settings": {"temperature": 0.5}}, "temperature would change nothing"),
        ("hyde", {"settings": {"max_length": 16}}, "max_length would change nothing"),
        ("rocchio", {"settings": {"dtype": "float32"}}, "dtype would change nothing"),
        ("bm25", {"control": ("perceptron",), "train": "x"}, "the perceptron stands on direct query vectors"),
    ],
)
def test_what_one_system_cannot_use_is_refused(names, model, entry, message):
    with pytest.raises(ValueError, match=message):
        check_plan(made(ComparedSystem(names.get(model, model), **entry), "other=bm25"))
    check_plan(made(names.get(model, model), "other=bm25"))


def test_a_setting_that_one_system_has_reaches_it_and_no_other(names):
    shared = {"samples": 1, "batch_invariant": True, "temperature": 0.5}
    plan = made("nano", names["hyde"], "bm25", names["rocchio"], settings=shared)
    check_plan(plan)
    found = [settings_for(entry, plan) for entry in plan.systems]
    assert found[0] == {"batch_invariant": True, "temperature": 0.5}
    assert {"samples", "temperature"} <= set(found[1])
    assert found[2:] == [{}, {}]
    own = ComparedSystem("nano", settings={"temperature": 0.1})
    assert settings_for(own, plan) == {"batch_invariant": True, "temperature": 0.1}
    with pytest.raises(ValueError, match="samples=2 at temperature 0"):  # values are looked at together
        check_plan(made(ComparedSystem(names["hyde"], settings={"samples": 2}), "nano", settings={"temperature": 0.0}))


def test_the_same_thing_is_not_said_twice_and_options_are_no_settings():
    with pytest.raises(ValueError, match="max_reasoning_tokens=3 say the same thing"):
        plan_of(["nano"], ["hopworld"], [8], settings={"max_reasoning_tokens": 3})
    for name, value in (("mode", "direct"), ("cache_folder", "x")):
        with pytest.raises(ValueError, match=f"settings.{name}: a comparison has its own"):
            plan_of(["nano"], ["hopworld"], settings={name: value})
        with pytest.raises(ValueError, match=f"settings.{name}: a comparison has its own"):
            ComparedSystem("nano", settings={name: value})
    with pytest.raises(ValueError, match="train_split = 'dev' would change nothing without train"):
        ComparedSystem("nano", train_split="dev")


def test_controls_that_were_not_asked_for_are_no_mistake(names):
    assert plan_of(["bm25", names["rocchio"]], ["hopworld"]).control == ()
    assert plan_of(["bm25", "nano"], ["hopworld"]).control == ("filler", "other", "shuffled", "empty")
    with pytest.raises(ValueError, match=r"control \(filler\) would change nothing"):
        check_plan(plan_of(["bm25"], ["hopworld"], controls=["filler"]))
