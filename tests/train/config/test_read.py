"""Every setting is read by something that is not a check: a field that nothing reads is a promise that nobody keeps.

Names alone are compared, so a field that shares its name with another's may hide behind it; that a value has the effect
that it names is for the tests of the room that reads it.
"""

import ast
from pathlib import Path

import train
from train.config.settings import sections_of
from train.config.stages import RlConfig, SftConfig
from train.losses.rewards import REWARD_FUNCTIONS

ROOT = Path(train.__file__).parent


def classes(*found):
    """These settings and all that they hold."""
    for cls in found:
        yield cls
        for field in cls.model_fields.values():
            yield from classes(*sections_of(field.annotation))


def names_read(tree):
    """Attributes that are read, and names in strings; what only the rules of a configuration read does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("check", "check_precision"):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        yield from names_read(node)


def unread(fields, sources):
    read = {name for source in sources for name in names_read(ast.parse(source))}
    return {f"{cls}.{name}" for cls, name in fields if name not in read}


def test_every_setting_is_read():
    fields = {(cls.__name__, name) for cls in classes(SftConfig, RlConfig) for name in cls.model_fields}
    assert len(fields) > 100
    sources = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")]
    # Weights of rewards are read together, by the names of their functions.
    weights = {f"RewardSettings.{name}" for name in REWARD_FUNCTIONS}
    assert unread(fields, sources) - weights == set()


def test_a_setting_that_only_its_check_reads_would_be_found():
    source = "class A:\n    def check(self):\n        return self.lost\n    def use(self):\n        return self.kept\n"
    assert unread({("A", "lost"), ("A", "kept")}, [source]) == {"A.lost"}
