"""A hub on this machine: folders as data sets with commits, answered as huggingface_hub and datasets ask."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlparse

_TREE = re.compile(r"/api/datasets/([^/]+/[^/]+)/tree/(\w+)/?(.*)")
_FACTS = re.compile(r"/api/datasets/([^/]+/[^/]+?)(?:/revision/(\w+))?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/(\w+)/(.*)")


@contextmanager
def hub(data_sets):
    """Serve {name: {commit: folder}}, the last commit being the newest; gives the endpoint."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(*answer(data_sets, unquote(urlparse(self.path).path), self.headers.get("Range")))

        do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

        def reply(self, code, body, headers=None):
            self.send_response(code)
            for name, value in {"Content-Length": len(body), **(headers or {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(data_sets, path, wanted):
    """Status, body and headers."""
    for pattern, respond in ((_TREE, tree), (_FILE, file), (_FACTS, facts)):
        if (found := pattern.fullmatch(path)) and found[1] in data_sets:
            commits = data_sets[found[1]]
            commit = found[2] if found[2] in commits else list(commits)[-1]
            return respond(found, commits[commit], commit, wanted)
    return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


def facts(found, folder, commit, _):
    files = [{"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*") if path.is_file()]
    return 200, json.dumps({"id": found[1], "sha": commit, "tags": [], "siblings": files}).encode()


def tree(found, folder, commit, _):
    entries = [
        {"type": "file" if path.is_file() else "directory", "path": path.relative_to(folder).as_posix(),
         "oid": hashlib.sha1(path.name.encode()).hexdigest(), "size": path.stat().st_size}
        for path in sorted((folder / found[3]).iterdir())
    ]  # fmt: skip
    return 200, json.dumps(entries).encode()


def file(found, folder, commit, wanted):
    path = folder / found[3]
    headers = {"X-Repo-Commit": commit}
    if not path.is_file():
        return 404, b"{}", headers | {"X-Error-Code": "EntryNotFound"}
    data = path.read_bytes()
    headers |= {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
    if wanted is None:
        return 200, data, headers
    first, last = wanted.removeprefix("bytes=").split("-")
    start, end = int(first), min(int(last or len(data)), len(data) - 1)
    return 206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
