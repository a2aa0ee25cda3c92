"""The program around the application: its socket, model and indexes, and how it ends."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from search_r3_mteb.serving.app import application
from search_r3_mteb.serving.searching import Searches
from search_r3_mteb.serving.settings import API_KEY, ServeSettings, api_key
from search_r3_mteb.stopping import advise, finishing

_log = logging.getLogger(__name__)
_LOCAL = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):
    """uvicorn, whose signals are this program's own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    model: str,
    indexes: Sequence[Path] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    settings: ServeSettings | None = None,
    encoder_settings: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve `model` and the indexes in these folders until a signal comes; `port` 0 takes a free one.

    `name` is what requests call the model, by default the last part of `model`. `say` gets the address and what is
    worth knowing. Raises what loading raises, OSError for an address that cannot be had, and ValueError for settings.
    """
    chosen, key = settings or ServeSettings(), api_key()
    named = _by_name(indexes)
    served = name or Path(model).name
    if not served.isprintable() or served.endswith((":query", ":document")):
        raise ValueError(f"The model cannot be called {served!r}: NAME:query and NAME:document say the role of texts.")
    if (encoder_settings or {}).get("cache_folder") is not None:
        raise ValueError(
            "cache_folder was given, but a server keeps no texts and no vectors. Leave it out; documents that are to "
            "be searched belong into an index."
        )
    with contextlib.closing(_bound(host, port)) as listener:  # before the model is loaded
        from search_r3_mteb.encoder.encoder import SearchR3Encoder

        encoder = SearchR3Encoder(model, **{"show_progress_bar": False, **(encoder_settings or {})})
        opened = {each: _opened(folder, encoder) for each, folder in named.items()}
        app = application(encoder, served, chosen, key=key, searches=Searches(opened))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", server_header=False, lifespan="on",
            timeout_graceful_shutdown=int(max(1, chosen.grace)),
        )  # fmt: skip
        server = _Server(config)
        address = listener.getsockname()
        for line in _lines(served, encoder, chosen, f"http://{_shown(host)}:{address[1]}", key, opened):
            say(line)
        if key is None and host not in _LOCAL:
            _log.warning(
                "%s is not this machine alone, and %s is not set: whoever reaches the port can use the model and read "
                "what is indexed.",
                host,
                API_KEY,
            )
        advise(
            lambda: (
                f"What runs is finished, for at most {chosen.grace:g} s; a second signal ends it at once. Nothing is "
                "lost: a server keeps nothing."
            )
        )

        def finish() -> None:
            server.should_exit = True

        with finishing(finish, chosen.grace + 10):
            server.run(sockets=[listener])


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


def _opened(folder: Path, encoder: Any) -> Any:
    from search_r3_mteb.indexing import SearchIndex

    return SearchIndex.open(folder, encoder)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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
    yield f"Requests need the key of {API_KEY}." if key else f"Everybody who reaches the port is served: {API_KEY} is not set."
