import re
import tomllib
import typing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.programs import loaded_after
from train.config.data import DataSettings, SourceSettings
from train.config.grpo import RolloutSettings
from train.config.loading import ConfigError, differences, dump, fingerprint, flatten, load_config
from train.config.loss import LossSettings
from train.config.model import LoraSettings, ModelSettings
from train.config.run import OptimizationSettings
from train.config.settings import Settings, sections_of
from train.config.stages import RlConfig, SftConfig

MINIMAL = """
[model]
path = "nano"
[[data.sources]]
kind = "hopworld"
[[data.sources]]
kind = "jsonl"
path = "pairs.jsonl.gz"
columns = {query = "question", negatives = ["wrong"]}
"""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def sections(cls):
    """Every Settings class in the tree below `cls`."""
    yield cls
    for field in cls.model_fields.values():
        for section in sections_of(field.annotation):
            yield from sections(section)


def test_a_minimal_file_gives_a_tree_of_defaults(toml):
    config = load_config(toml)
    assert config.model.path == "nano"
    assert config.loss == LossSettings()
    assert [s.label for s in config.data.sources] == ["hopworld-12-traces", "pairs.jsonl.gz"]
    assert config.data.sources[1].columns.query == "question"
    assert config.data.sources[1].columns.negatives == ("wrong",)
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.kl = 0


def test_overrides_take_toml_values_bare_words_positions_and_none(toml):
    config = load_config(
        toml,
        [
            "optimization.steps=7",
            "optimization.learning_rate = 1e-3",
            "loss.kl_direction=forward",
            'model.path="other model"',
            "data.sources.1.weight=3",
            "model.lora.rank=4",
            "optimization.betas=[0.8, 0.95]",
        ],
    )
    assert config.optimization.steps == 7
    assert config.optimization.learning_rate == 1e-3
    assert config.loss.kl_direction == "forward"
    assert config.model.path == "other model"
    assert config.data.sources[1].weight == 3.0
    assert isinstance(config.data.sources[1].weight, float)
    assert config.model.lora == LoraSettings(rank=4)
    assert config.optimization.betas == (0.8, 0.95)
    assert load_config(toml, ["model.lora.rank=4", "model.lora=none"]).model.lora is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.temperatur=0.1"], r"\[loss\] temperatur: there is no such key. Did you mean 'temperature'\?"),
        (["data.decontamination.thresold=0.9"], r"\[data.decontamination\] thresold.*Did you mean 'threshold'"),
        (["data.batch_size=8"], r"\[data\] batch_size: there is no such key.*optimization.batch_size"),
        (["los.kl=1"], r"los: there is no such key. Did you mean 'loss'\?"),
        (["data.sources.0.pfad=x"], r"\[data.sources.0\] pfad: there is no such key"),
        (["loss.temperature=-1"], r"\[loss\] temperature: got -1, but it must be at least 0.001.*divides.*Set.*= 0.05"),
        (["loss.temperature=hot"], r'\[loss\] temperature: got "hot" \(text\), but it must be a number'),
        (["optimization.steps=2.5"], r"\[optimization\] steps: got 2.5 .*must be a whole number.*for example steps ="),
        (["optimization.steps=true"], r"got true \(true or false\), but it must be a whole number"),
        (["output.tensorboard=1"], r"\[output\] tensorboard: got 1 .*must be true or false"),
        (["optimization.learning_rate=nan"], r"learning_rate: got nan, but it must be finite"),
        (["model.path=3"], r"\[model\] path: got 3 .*must be text in quotes"),
        (["loss.kl_direction=forwards"], r"must be one of \"forward\", \"reverse\". Did you mean 'forward'"),
        (["optimization.betas=[0.9]"], r"betas.1: is missing: the list needs 2 values"),
        (["optimization.betas=0.9"], r"betas: got 0.9 .*must be a list"),
        (["evaluate.modes=['direct','think']"], r"evaluate.modes.1: got \"think\""),
        (["loss=3"], r"\[loss\]: got 3, but this is a section"),
        (["model=none"], r"\[model\]: is missing and has no default.*Add a \[model\] section"),
        (["data.sources.².weight=1"], r"'²' is not a position in this list of 2"),
        (["optimization.steps="], r"has no value. Write one"),
        (["model.path=none"], r"\[model\]: neither path nor scratch is set"),
        (["data.sources.1.continued=0.5"], r"continued belongs to kind = hopworld"),
        (["optimization.steps"], r"not of the form section.key=value"),
        (["data.sources.5.path=x"], r"'5' is not a position in this list of 2"),
        (["loss.kl.x=1"], None),
        (['loss.kl_direction="forward'], r"is not a TOML value"),
        (["loss.kl=1\nloss.x=2"], r"more than one line|no TOML"),
        # settings that exclude each other say why
        (["model.scratch.layers=2"], r"path and scratch exclude each other: weights are loaded or random"),
        (
            ["model.path=none", "model.scratch.heads=3"],
            r"\[model.scratch\]: heads = 3 does not divide hidden_size = 128",
        ),
        (["model.path=none", "model.scratch.layers=2", "model.lora.rank=2"], r"a random frozen base never learns"),
        (
            ["model.path=none", "model.scratch.layers=2"],
            r"loss.kl and model.scratch exclude each other.*Set loss.kl = 0",
        ),
        (["loss.in_batch=false"], r"loss.in_batch = false needs hard negatives, but data.hard_negatives = 0"),
        (
            ["loss.in_batch=false", "loss.hard_negatives=false"],
            r"exclude a contrastive loss: it would have no negatives",
        ),
        (["loss.reply=0", "loss.infonce=0", "loss.triplet=0"], r"only kl is above 0"),
        (["optimization.mini_batch_size=65"], r"mini_batch_size = 65 is larger than batch_size = 64"),
        (["optimization.warmup_steps=1000"], r"leaves nothing of steps = 1000"),
        (["optimization.schedule=constant", "optimization.final_share=0.1"], r"final_share has no meaning"),
        (["optimization.mixed_precision=bf16", "model.dtype=bfloat16"], r"every weight trained.*is rounded away"),
        (["evaluate.modes=['direct']"], r'best_by = "reason" is not among modes'),
        (["data.sources.0.path=x"], r"the world is generated. Remove path"),
        (["data.sources.1.hops=[3]"], r'hops belongs to kind = hopworld, not to "jsonl"'),
        (["data.sources.1.name=hopworld-12-traces"], r"both called 'hopworld-12-traces'"),
        (["data.sources=[]"], r"sources is empty: there is nothing to train on"),
        (["data.mining.count=2"], r"mining is set but hard_negatives = 0"),
        (["data.hard_negatives=2", "loss.hard_negatives=false"], r"are read but loss.hard_negatives = false ignores"),
    ],
)
def test_what_cannot_hold_is_refused_with_place_value_and_advice(toml, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(toml, overrides)
    assert "run.toml" in str(caught.value) or "--set" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.group_size=1"], r"group_size = 1: GRPO compares"),
        (["reward.dcg_scaled=0"], r"every reward weight is 0"),
        (["policy.weight=0", "contrastive.weight=0"], r"both 0, so nothing would be learned"),
        (["corpus_cache.policy=frozen"], r"full fine-tuning moves the documents too"),
        (["corpus_cache.budget_tokens=0"], r"budget_tokens = 0 lets it encode none"),
        (["replay.rows_per_step=1"], r"\[replay\]: rows_per_step and sources are needed together"),
        (["replay.loss.kl=0.1"], r"replay.loss.kl has no base to stay near"),
        (["model.path=none", "model.scratch.layers=2"], r"random weights never do"),
        (["policy.clip_low=1"], r"clip_low: got 1, but it must be at most 0.999"),
    ],
)
def test_stage_two_has_its_own_rules(toml, overrides, message):
    assert load_config(toml, cls=RlConfig).optimization.learning_rate == 1e-6
    with pytest.raises(ConfigError, match=message):
        load_config(toml, overrides, RlConfig)


def test_a_partial_section_keeps_the_other_defaults_of_its_stage(toml):
    config = load_config(toml, ["optimization.steps=3", "output.log_every=2"], RlConfig)
    assert config.optimization.learning_rate == 1e-6
    assert config.optimization.schedule == "constant"
    assert config.output.folder == "runs/rl"


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.toml.*train/configs"):
        load_config(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("[model\n")
    with pytest.raises(ConfigError, match=r"broken.toml is not TOML"):
        load_config(tmp_path / "broken.toml")


def test_rules_hold_in_python_too():
    with pytest.raises(ValidationError, match=r"temperature\n.*greater than or equal to 0.001"):
        LossSettings(temperature=-1)
    with pytest.raises(ValidationError, match=r"steps\n.*valid integer"):
        OptimizationSettings(steps="x")
    with pytest.raises(ValueError, match="neither path nor scratch is set"):
        ModelSettings()
    with pytest.raises(ValueError, match=r"group_size = 1"):
        RolloutSettings(group_size=1)
    assert DataSettings(sources=[SourceSettings(kind="hopworld", hops=[3])]).sources[0].hops == (3,)


@pytest.mark.parametrize("cls", [SftConfig, RlConfig])
@pytest.mark.parametrize("documented", [False, True])
def test_dump_and_load_give_the_same_tree(toml, tmp_path, cls, documented):
    config = load_config(toml, ["model.lora.rank=3", "data.evaluation=[{kind='hopworld'}]"], cls)
    text = dump(config, documented=documented)
    (tmp_path / "resolved.toml").write_text(text)
    assert load_config(tmp_path / "resolved.toml", cls=cls) == config
    assert tomllib.loads(text)["optimization"]["epsilon"] == 1e-8
    assert ("# Peak rate" in text) == documented


@settings(max_examples=60)
@given(
    name=st.text(min_size=1).filter(lambda s: s.strip("/")),
    rate=st.floats(min_value=1e-3, max_value=100),
    modules=st.lists(st.text(), min_size=1, max_size=3),
)
@example(name="\x1b", rate=1.0, modules=["\x00\x7f"])  # tomlkit before 0.15.2 wrote what TOML 1.0 cannot read
def test_any_text_and_number_survives_dump(name, rate, modules, tmp_path_factory):
    config = SftConfig(
        model=ModelSettings(path="m", lora=LoraSettings(target_modules=tuple(modules))),
        data=DataSettings(sources=(SourceSettings(kind="jsonl", path="x", name=name),)),
        loss=LossSettings(temperature=rate),
    )
    try:
        text = dump(config).encode()
    except UnicodeEncodeError:  # a file cannot hold a lone surrogate
        return
    path = tmp_path_factory.mktemp("dump") / "x.toml"
    path.write_bytes(text)
    assert load_config(path) == config


@pytest.mark.parametrize("cls", [SftConfig, RlConfig])
def test_every_field_says_what_it_is_and_where_its_value_comes_from(cls):
    origin = re.compile(r"our choice|arXiv|\[[PS]\]|default|GRACE|the paper|DAPO|NV-Retriever|TopK|As in", re.I)
    for section in set(sections(cls)):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
            is_value = not field.is_required() and not isinstance(field.default, Settings)
            assert not is_value or origin.search(" ".join(field.description.split())), (
                f"{section.__name__}.{name}: no source"
            )


@pytest.mark.parametrize("cls", [SftConfig, RlConfig])
def test_what_may_be_absent_is_absent_by_default(cls):
    """TOML has no null: a None that is not the default could not be written back."""
    for section in set(sections(cls)):
        for name, field in section.model_fields.items():
            if type(None) in typing.get_args(field.annotation):
                assert field.default is None, f"{section.__name__}.{name}"


def test_fingerprint_covers_what_changes_the_weights_and_nothing_else(toml):
    base = load_config(toml)
    moved = load_config(toml, ["output.folder=elsewhere", "evaluate.every=3", "checkpoint.keep=9"])
    other = load_config(toml, ["loss.kl=0.5", "data.sources.0.weight=2"])
    assert fingerprint(base) == fingerprint(moved)
    assert fingerprint(base) != fingerprint(other)
    assert differences(flatten(base), flatten(moved)) == []
    assert differences(flatten(base), flatten(other)) == ["data.sources.0.weight: 1.0 -> 2.0", "loss.kl: 1.0 -> 0.5"]


def test_configurations_are_read_without_torch():
    assert not loaded_after("import train.config.loading", ["torch", "numpy", "datasets", "mteb"])
