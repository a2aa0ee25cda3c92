"""Extensions: rewards, refresh policies, tasks, profiles and baselines that other packages bring, by name.

A package registers a function, and names it in its metadata, where every command finds it (docs/extend.md):

    @REWARDS.register("recall", settings=RecallSettings)      # my_package/recall.py
    def recall(graded, rankings, settings): ...

    [project.entry-points."search_r3_mteb.rewards"]           # its pyproject.toml
    recall = "my_package.recall:recall"

In a script the decorator alone is enough, for its process. A package is imported when its extension is used, so that a
broken one stops only what uses it.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class ExtensionError(ValueError):
    """An extension that is not there, or does not do what it must; the text names its package and entry point."""


@dataclass(frozen=True)
class Extension:
    """A registered function. `settings` is the class of its settings where it has some; `origin` says whose it is."""

    kind: str
    name: str
    function: Callable[..., Any]
    settings: type | None
    options: Mapping[str, Any]
    origin: str

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives. Raises ExtensionError, with the cause, for whatever it raises."""
        try:
            return self.function(*arguments)
        except Exception as error:
            text = str(error).rstrip(".")
            raise ExtensionError(f"The {self} failed with {type(error).__name__}: {text}. See --debug.") from error

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.origin}"

    def to_dict(self) -> dict[str, str]:
        """What it is, for a log."""
        return {"what": self.kind, "name": self.name, "origin": self.origin}

    def error(self, what: str) -> ExtensionError:
        """The error that says `what` is wrong with this extension."""
        return ExtensionError(f"The {self} {what.rstrip('.')}. Fix that package, or leave {self.name!r} out.")


@dataclass(frozen=True, eq=False)
class Registry:
    """The extensions of one kind, from the entry points of `group` and from this process. `reserved` names are ours."""

    kind: str
    group: str
    reserved: tuple[str, ...] = ()
    _registered: dict[str, Extension] = field(default_factory=dict)

    def register(self, name: str, *, settings: type | None = None, **options: Any) -> Callable[[Function], Function]:
        """The decorator that registers a function under `name`; the function stays as it is.

        Raises ExtensionError for a name that is taken, or that cannot stand in a configuration.
        """
        self._check_name(name, "a decorator")

        def keep(function: Function) -> Function:
            place = f"{function.__module__}:{function.__qualname__}"
            before = self._registered.get(name)
            if before is not None and before.origin != place:  # a cell or module that runs again replaces its own
                raise ExtensionError(
                    f"Two extensions register the {self.kind} {name!r}: {before.origin} and {place}. One of them would "
                    "have no effect: rename one."
                )
            self._registered[name] = Extension(self.kind, name, function, settings, options, place)
            return function

        return keep

    def names(self) -> list[str]:
        """The names that there are; no package is imported for it."""
        return sorted({*self._registered, *(point.name for point in entry_points(group=self.group))})

    def marked(self) -> list[str]:
        """The names, with a mark on those that cannot be used; no package is imported, so a broken one has no mark."""
        points = [point.name for point in entry_points(group=self.group)]
        wrong = {name for name in points if points.count(name) > 1 or name in self.reserved or not _fits(name)}
        return [f"{name} (cannot be used: see search-r3 doctor)" if name in wrong else name for name in self.names()]

    def find(self, name: str) -> Extension:
        """The extension of this name; its package is imported. Raises ExtensionError for none, two, or a broken one."""
        points = list(entry_points(group=self.group, name=name))
        if not points:
            if name not in self._registered:
                raise ExtensionError(self._unknown(name))
            return self._registered[name]
        owners = [_owner(point) for point in points]
        if len(points) > 1:
            raise ExtensionError(
                f"{len(points)} packages bring a {self.kind} {name!r}: {'; '.join(sorted(owners))}. All but one would "
                "have no effect: uninstall or rename the others."
            )
        self._check_name(name, owners[0])
        return self._loaded(points[0], owners[0])

    def said(self) -> str:
        """A half-sentence for errors and help: which extensions are installed."""
        names = self.marked()
        return f"installed extensions: {', '.join(names)}" if names else "no extension is installed"

    def _loaded(self, point: EntryPoint, owner: str) -> Extension:
        try:
            function = point.load()
        except (Exception, SystemExit) as error:
            raise ExtensionError(
                f"The {self.kind} {point.name!r} of {owner} cannot be loaded: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. Fix that package, or uninstall it."
            ) from error
        found = self._registered.get(point.name)
        if found is None:
            other = [each.name for each in self._registered.values() if each.function is function]
            raise ExtensionError(
                f"The {self.kind} {point.name!r} of {owner} is "
                + (f"registered as {other[0]!r}" if other else "not registered")
                + f": write @{self.group.rpartition('.')[2].upper()}.register({point.name!r}) over it."
            )
        if found.function is not function:
            raise ExtensionError(
                f"Two extensions are the {self.kind} {point.name!r}: {owner}, and {found.origin}. One of them would "
                "have no effect: rename one."
            )
        return replace(found, origin=owner)

    def _check_name(self, name: Any, whose: str) -> None:
        if not _fits(name):
            raise ExtensionError(
                f"{name!r}, the name that {whose} gives to a {self.kind}, cannot stand in a configuration. Use letters "
                "of ASCII, digits, '-' and '_', and begin with a letter."
            )
        if name in self.reserved:
            raise ExtensionError(
                f"{name!r}, the name that {whose} gives to a {self.kind}, is one of this package's own, which would "
                f"be used instead. Choose another; {', '.join(self.reserved)} are taken."
            )

    def _unknown(self, name: str) -> str:
        if name in self.reserved:
            return f"The {self.kind} {name!r} is one of this package's own, not an extension: name it where ours stand."
        advice = did_you_mean(name, [*self.names(), *self.reserved])
        own = f"Ours are {', '.join(self.reserved)}; " if self.reserved else ""
        said = self.said() if own else f"{self.said()[0].upper()}{self.said()[1:]}"
        return (
            f"There is no {self.kind} {name!r}.{advice} {own}{said}. A package brings one by an entry point of "
            f"the group {self.group!r} (docs/extend.md)."
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence for an error, with a space before it: which of the known names is near; "" where none is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _fits(name: Any) -> bool:
    """Whether a configuration can hold this name as a key."""
    return isinstance(name, str) and name[:1].isalpha() and not set(name) - _LETTERS


def _owner(point: EntryPoint) -> str:
    package = f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else "this environment"
    return f"{package} (entry point {point.value})"


REWARDS = Registry("reward", "search_r3_mteb.rewards", ("dcg_scaled", "ndcg", "mrr", "margin"))
REFRESH_POLICIES = Registry(
    "refresh policy",
    "search_r3_mteb.refresh_policies",
    ("none", "random", "local", "random+map", "local+map", "full", "frozen"),
)
TASKS = Registry("task", "search_r3_mteb.tasks", ("hopworld", "stdlib", "beir"))
PROFILES = Registry("profile", "search_r3_mteb.profiles")
BUNDLED = ("nano", "mini", "smol")
"""Models that came with this package: folders of `assets`."""
BASELINES = Registry(
    "baseline",
    "search_r3_mteb.baselines",
    ("bm25", *BUNDLED, "hyde", "query2doc", "mugi", "keywords", "gar", "search-r3-prompt", "feedback", "rocchio"),
)
REGISTRIES = (REWARDS, REFRESH_POLICIES, TASKS, PROFILES, BASELINES)


def installed() -> Iterator[tuple[str, str]]:
    """Pairs of a kind and what is installed of it, or why it cannot be used; their packages are imported."""
    for registry in REGISTRIES:
        for name in registry.names():
            try:
                yield registry.kind, f"{name}: {registry.find(name).origin}"
            except ExtensionError as error:
                yield registry.kind, f"{name}: cannot be used. {error}"
