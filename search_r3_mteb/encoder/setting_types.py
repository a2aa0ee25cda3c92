"""Types of settings that come from Python: nothing is read as what it is not.

In Python "false" and "no" are true, and 1 is a bool of a kind: a setting that runs code must not be decided by that.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """TypeError unless `value` is True or False (or None where it is `optional`)."""
    if not (isinstance(value, bool) or (optional and value is None)):
        wanted = "True, False or None" if optional else "True or False"
        raise TypeError(
            f"{name}={value!r:.60} is of type {type(value).__name__}; it must be {wanted}. Python takes any text that "
            "is not empty for true, so nothing else is read as one."
        )


def check_whole_number(name: str, value: Any, *, optional: bool = False) -> None:
    """TypeError unless `value` is an int (or None where it is `optional`); a bool and a text are not one."""
    if (optional and value is None) or (isinstance(value, int) and not isinstance(value, bool)):
        return
    raise TypeError(f"{name}={value!r:.60} is of type {type(value).__name__}; it must be a whole number (int).")


def check_number(name: str, value: Any) -> None:
    """TypeError unless `value` is an int or a float; a bool and a text are not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r:.60} is of type {type(value).__name__}; it must be a number (int or float).")


def check_kind(name: str, value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    """TypeError unless `value` is of one of `kinds`, which `wanted` says in words."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name}={value!r:.60} is of type {type(value).__name__}; it must be {wanted}.")


def check_names(keywords: Iterable[str], cls: type, owner: str) -> None:
    """TypeError for a keyword that is not a field of `cls`, with the valid ones; `owner` has these settings."""
    valid = [each.name for each in fields(cls)]
    unknown = sorted(set(keywords) - set(valid))
    if unknown:
        raise TypeError(f"{owner} has no setting {', '.join(unknown)}. The valid ones are {', '.join(valid)}.")


def check_device_name(device: Any) -> None:
    """TypeError unless `device` is None, a name such as "cuda:0", or a torch device; True would be the second GPU."""
    if device is None or isinstance(device, str):
        return
    import torch

    check_kind("device", device, (torch.device,), 'a name such as "cpu" or "cuda:0", or a torch device')
