"""The command line of both stages."""

import pytest

from tests.train.loops import RL, SFT
from train.config.stages import SftConfig
from train.run.command import parse


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(SFT)
    return file


def test_overrides_and_dry_run(path):
    command = parse(
        "sft.py", SftConfig, ["--config", str(path), "--set", "optimization.steps=7", "--set", "loss.infonce=2"]
    )
    assert (command.config.optimization.steps, command.config.loss.infonce, command.dry_run) == (7, 2.0, False)
    assert parse("sft.py", SftConfig, ["--config", str(path), "--dry-run"]).dry_run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "optimization.stepz=7"], "Did you mean 'steps'?"),
        (["--set", "model.scratch.layers=0"], "layers"),
        (["--set", "loss.infonce=-1"], "infonce"),
        (["--set", "model.scratch.heads=5"], "does not divide"),
        (["--set", "nonsense"], "nonsense"),
    ],
)
def test_a_wrong_setting_ends_with_code_2_and_its_message(path, capsys, arguments, said):
    """Regression: the loader's own error was not the one that was caught, and a traceback came with code 1."""
    with pytest.raises(SystemExit) as end:
        parse("sft.py", SftConfig, ["--config", str(path), *arguments])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("sft.py: ")
    assert said in shown


def test_a_missing_file_and_an_unknown_option(tmp_path, capsys):
    for arguments in (["--config", str(tmp_path / "none.toml")], ["--conf"], []):
        with pytest.raises(SystemExit) as end:
            parse("rl.py", SftConfig, arguments)
        assert end.value.code == 2
    assert "none.toml" in capsys.readouterr().err


def test_none_is_a_value_where_it_is_one_of_them(tmp_path):
    """Regression: `corpus_cache.policy=none` took the key away, and the run went on under the default policy."""
    from train.config.stages import RlConfig

    path = tmp_path / "rl.toml"
    path.write_text(RL)
    for word in ("none", '"none"', " none"):
        config = parse("rl.py", RlConfig, ["--config", str(path), "--set", f"corpus_cache.policy={word}"]).config
        assert config.corpus_cache.policy == "none"
    given = ["--set", "data.sources.0.name=x", "--set", "data.sources.0.name=none", "--set", "model.revision=none"]
    config = parse("rl.py", RlConfig, ["--config", str(path), *given]).config
    assert config.data.sources[0].name is None
    assert config.model.revision is None
