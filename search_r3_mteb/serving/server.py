"""The program around the application: its socket, model and indexes, and how it ends."""

import logging
import math
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from search_r3_mteb.serving.app import application
from search_r3_mteb.serving.searching import Searches
from search_r3_mteb.serving.settings import API_KEY, ServeSettings, api_key
from search_r3_mteb.stopping import advise, finishing

_LOCAL = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):
    """uvicorn, whose signals are this program's own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Prepared:
    """A server that only has to `run`: its socket is bound, model and indexes are loaded, `lines` say what it is."""

    server: uvicorn.Server
    listener: socket.socket
    port: int
    lines: list[str]
    grace: float

    def run(self) -> None:
        """Serve until a signal comes, or `stop`; what runs then is finished, within the grace."""
        with self.listener, finishing(self.stop, self.grace + 10):
            self.server.run(sockets=[self.listener])

    def stop(self) -> None:
        """Begin to end."""
        self.server.should_exit = True


def prepare(
    model: str | None = None,
    indexes: Sequence[Path] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    settings: ServeSettings | None = None,
    encoder_settings: dict[str, Any] | None = None,
) -> Prepared:
    """A server of `model` and the indexes in these folders; `port` 0 takes a free one.

    Without `model` it is the one that made the first index, loaded as it was then; without an index, nano. `name` is
    what requests call the model, by default the last part of its name. Raises what loading raises, OSError for
    an address that cannot be had, and ValueError for settings that cannot be.
    """
    chosen, key, given = settings or ServeSettings(), api_key(), encoder_settings or {}
    named = _by_name(indexes)
    first = _first(indexes, given) if model is None and indexes else None
    source = model or (first.model["name"] if first else "nano")
    served = name or Path(source or "model").name
    if not served.isprintable() or served.endswith((":query", ":document")):
        raise ValueError(f"The model cannot be called {served!r}: NAME:query and NAME:document say the role of texts.")
    if given.get("cache_folder") is not None:
        raise ValueError(
            "cache_folder was given, but a server keeps no texts and no vectors. Leave it out; documents that are to "
            "be searched belong into an index."
        )
    listener = _bound(host, port)  # before the model is loaded, which may take minutes
    try:
        from search_r3_mteb.encoder.encoder import SearchR3Encoder

        encoder = first.encoder if first else SearchR3Encoder(source, **({"show_progress_bar": False} | given))
        opened = {each: _opened(folder, encoder) for each, folder in named.items()}
    except BaseException:
        listener.close()
        raise
    config = uvicorn.Config(
        application(encoder, served, chosen, key=key, searches=Searches(opened)), log_config=None, access_log=False,
        ws="none", server_header=False, lifespan="on", timeout_graceful_shutdown=math.ceil(chosen.grace),
    )  # fmt: skip
    listener.listen(config.backlog)  # whoever reads the address and comes at once waits, and is not refused
    logging.getLogger("uvicorn.access").disabled = True  # it would write paths and queries, whatever they hold
    prepared = Prepared(_Server(config), listener, listener.getsockname()[1], [], chosen.grace)
    url = f"http://{f'[{host}]' if ':' in host else host}:{prepared.port}"
    prepared.lines += _lines(served, encoder, chosen, url, key, opened)
    if key is None and host not in _LOCAL:
        prepared.lines.append(
            f"WARNING: {host} is more than this machine, and {API_KEY} is not set: whoever reaches the port can use "
            "the model and read what is indexed."
        )
    return prepared


def serve(
    model: str | None, indexes: Sequence[Path] = (), *, say: Callable[[str], None] = print, **options: Any
) -> None:
    """Serve as `prepare` says until a signal comes; `say` gets the address and what is worth knowing."""
    prepared = prepare(model, indexes, **options)
    for line in prepared.lines:
        say(line)
    advise(
        lambda: (
            f"What runs is finished, for at most {prepared.grace:g} s; a second signal ends it at once. Nothing is "
            "lost: a server keeps nothing."
        )
    )
    prepared.run()


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address, which does not listen yet. Raises OSError that names the address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"{host}, port {port}, cannot be served at ({error}). Another program may have the port: give another one "
            "by --port, or 0 for a free one; --host is an address of this machine."
        ) from error
    return bound


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in found:
            raise ValueError(
                f"--index {found[name]} and --index {folder} have the same name {name!r}, by which requests choose. "
                "Rename one of the folders."
            )
        found[name] = folder
    return found


def _first(indexes: Sequence[Path], settings: dict[str, Any]) -> Any:
    """The index whose model is served; its files are checked where all are opened."""
    from search_r3_mteb.indexing.index import SearchIndex

    return SearchIndex.open(indexes[0], verify=False, **({"show_progress_bar": False} | settings))


def _opened(folder: Path, encoder: Any) -> Any:
    from search_r3_mteb.indexing.encoding import OtherEncodingError
    from search_r3_mteb.indexing.index import SearchIndex

    try:
        return SearchIndex.open(folder, encoder)
    except OtherEncodingError as error:
        command = shlex.join(["search-r3", "serve", "--index", str(folder)])
        raise ValueError(f"{error.what} Without --model, that of the index is served: {command}") from error


def _lines(
    served: str, encoder: Any, settings: ServeSettings, url: str, key: str | None, indexes: dict[str, Any]
) -> Iterator[str]:
    yield f"Serving {served} at {url} ({encoder.dim} dimensions, mode {encoder.mode})."
    if settings.require_role:
        yield f"Requests say the role of their texts: model {served}:query or {served}:document, or input_type."
    else:
        yield (
            f"A request that does not say the role of its texts embeds DOCUMENTS, without reasoning. Queries: model "
            f"{served}:query, or input_type='query' (--require-role refuses requests that do not say it)."
        )
    for name, index in indexes.items():
        yield f"Index {name}: {len(index):,} documents, at {url}/ and POST {url}/v1/search."
    yield (
        f"Requests need the key of {API_KEY}." if key else f"{API_KEY} is not set: whoever reaches the port is served."
    )
