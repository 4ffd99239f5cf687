"""A model hub on 127.0.0.1: enough of the Hugging Face Hub for its real client, with faults on demand.

The client needs nothing but `endpoint=hub.url`. Uploads are plain HTTP: Xet has to be off in the client.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1, sha256
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from loopback_server import (
    Answer,
    Corrupt,
    Cut,
    Fault,
    Hang,
    LoopbackServer,
    Request,
    Short,
    Stall,
    Status,
    json_answer,
)

__all__ = [
    "Blob",
    "Corrupt",
    "Cut",
    "Fault",
    "Hang",
    "LoopbackHub",
    "Repo",
    "Request",
    "Short",
    "Stall",
    "Status",
]

_GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Blob:
    """The content of a file, kept in git or, if large (`lfs`), in the storage beside it."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """The name of a large file in the storage."""
        return sha256(self.content).hexdigest()

    @cached_property
    def in_git(self) -> bytes:
        """What git keeps: the content, or a pointer into the storage."""
        size = len(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n"
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def oid(self) -> str:
        """The id of the blob in git."""
        return sha1(b"blob %d\0" % len(self.in_git) + self.in_git).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """The file in a listing; model info and tree call the same things by different names."""
        size = len(self.content)
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": size}
        entry |= {"rfilename": path, "blobId": self.oid}
        if self.lfs:
            name = {"oid": self.sha256, "sha256": self.sha256}
            entry["lfs"] = name | {"size": size, "pointerSize": len(self.in_git)}
        return entry


class Repo:
    """A repository: commits as complete trees, and names for them."""

    def __init__(self, name: str, private: bool, gated: bool) -> None:
        self.name, self.private, self.gated = name, private, gated
        self.refs: dict[str, str] = {}  # branches and tags
        self.trees: dict[str, dict[str, Blob]] = {}  # by commit

    def commit(self, changes: Mapping[str, Blob | None], branch: str = "main") -> str:
        """Put the changes (None: deleted) on top of the branch; returns the commit."""
        parent = self.refs.get(branch, "")
        changed = {**self.trees.get(parent, {}), **changes}
        tree = {path: blob for path, blob in sorted(changed.items()) if blob is not None}
        about = [self.name, parent, len(self.trees), [(path, blob.oid) for path, blob in tree.items()]]
        self.refs[branch] = commit = sha1(json.dumps(about).encode()).hexdigest()
        self.trees[commit] = tree
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit behind a branch, a tag or a commit."""
        return self.refs.get(revision, revision if revision in self.trees else None)


class LoopbackHub(LoopbackServer):
    """The hub: `with LoopbackHub() as hub:` serves at `hub.url` until the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: set[str] = set()  # these may read everything and write
        self.outsiders: set[str] = set()  # valid, but may read only what is public and not gated
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}  # large files by sha256

    def add_repo(
        self, name: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False
    ) -> str:
        """Add a repository with one commit; returns the commit."""
        with self.lock:
            assert name not in self.repos, f"{name} exists"
            self.repos[name] = Repo(name, private, gated)
            return self.commit(name, files)

    def commit(self, name: str, files: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Commit files (None: deleted) on top of the branch; returns the commit."""
        changes: dict[str, Blob | None] = dict.fromkeys(files)
        with self.lock:
            for path, content in files.items():
                if content is not None:
                    changes[path] = blob = Blob(content, _is_large(path))
                    self.storage[blob.sha256] = content
            return self.repos[name].commit(changes, branch)

    def tag(self, name: str, tag: str, commit: str) -> None:
        """Give a commit a name; it may hold a slash."""
        with self.lock:
            assert commit in self.repos[name].trees, f"no commit {commit}"
            self.repos[name].refs[tag] = commit

    def repo(self, name: str) -> Repo:
        """The repository of this name; KeyError without one."""
        return self.repos[name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The content of all files at a revision."""
        with self.lock:
            commit = self.repos[name].resolve(revision)
            assert commit is not None, f"no revision {revision}"
            return {path: blob.content for path, blob in self.repos[name].trees[commit].items()}

    def answer(self, request: Request, body: bytes) -> Answer:
        """What the Hub answers."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        try:
            return _Api(self, token).answer(request, body)
        except _Refused as refused:
            return refused.answer


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class _Refused(Exception):  # noqa: N818
    """The request fails: a status, a message, and the code by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.answer = json_answer({"error": message}, status, {k: v for k, v in headers.items() if v})


class _Api:
    """One request, on behalf of the owner of a token."""

    def __init__(self, hub: LoopbackHub, token: str | None) -> None:
        self.hub, self.token, self.insider = hub, token, token in hub.tokens

    def answer(self, request: Request, body: bytes) -> Answer:
        url = urlsplit(request.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match request.method, parts:
            case "GET" | "HEAD", ["cdn", oid]:  # as behind a signed link: no token needed
                return self._stored(oid, query.get("commit", ""))
            case "PUT", ["cdn", oid]:
                return self._upload(oid, body)
        if self.token is not None and not self.insider and self.token not in self.hub.outsiders:
            raise _Refused(401, "Invalid credentials in Authorization header")
        match request.method, parts:
            case "GET" | "HEAD", [org, name, "resolve", revision, *path] if path:
                return self._file(f"{org}/{name}", revision, "/".join(path))
            case "GET", ["api", "models", org, name]:
                return self._info(f"{org}/{name}", "main", "blobs" in query)
            case "GET", ["api", "models", org, name, "revision", revision]:
                return self._info(f"{org}/{name}", revision, "blobs" in query)
            case "GET", ["api", "models", org, name, "tree", revision]:  # all files, without their folders
                files = self._at(self._readable(f"{org}/{name}"), revision)[1]
                return json_answer([blob.entry(path) for path, blob in files.items()])
            case "POST", ["api", "models", org, name, "preupload", revision]:
                return self._preupload(self._writable(f"{org}/{name}"), revision, json.loads(body))
            case "POST", ["api", "models", org, name, "commit", revision]:
                operations = [json.loads(line) for line in body.splitlines()]
                return self._commit(self._writable(f"{org}/{name}"), revision, operations)
            case "POST", [org, name, "info", "lfs", "objects", "batch"]:
                self._writable(f"{org}/{name.removesuffix('.git')}")
                return self._batch(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                missing = not json.loads(body)["content"].startswith("---")
                warning = {"message": "empty or missing yaml metadata in repo card"}
                return json_answer({"errors": [], "warnings": [warning] if missing else []})
            case "GET", ["api", "whoami-v2"]:
                self._insiders_only()
                return json_answer({"type": "user", "name": "loopback", "fullname": "Loopback", "orgs": []})
            case "POST", ["api", "repos", "create"]:
                self._insiders_only()
                return self._create(json.loads(body))
            case "POST", ["verify", oid] if oid in self.hub.storage:
                self._insiders_only()
                return json_answer({})
        raise _Refused(404, "Sorry, we can't find the page you are looking for.")

    def _insiders_only(self) -> None:
        if not self.insider:
            raise _Refused(401 if self.token is None else 403, "Invalid username or password.")

    def _readable(self, name: str) -> Repo:
        """The repository as far as its description; a private one does not exist for strangers."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.insider):
            raise _Refused(401 if self.token is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, name: str) -> Repo:
        repo = self._readable(name)
        self._insiders_only()
        return repo

    def _at(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        commit = repo.resolve(revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.trees[commit]

    def _file(self, name: str, revision: str, path: str) -> Answer:
        repo = self._readable(name)
        if repo.gated and not self.insider:
            status = 401 if self.token is None else 403
            raise _Refused(status, f"Access to model {name} is restricted.", "GatedRepo")
        commit, files = self._at(repo, revision)
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound", commit)
        blob = files[path]
        if not blob.lfs:
            headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            return Answer(200, headers, blob.content)
        source = {"for": f"/{name}/resolve/{revision}/{path}", "commit": commit}
        link = f"{self.hub.url}/cdn/{blob.sha256}?{urlencode(source, safe='/', quote_via=quote)}"
        return Answer(302, {**self._stored(blob.sha256, commit).headers, "Location": link})

    def _stored(self, oid: str, commit: str) -> Answer:
        """A large file. Clients that follow a redirect to the same host read the metadata at its end."""
        if oid not in self.hub.storage:
            raise _Refused(404, "No such object in the storage")
        content = self.hub.storage[oid]
        headers = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return Answer(200, headers | {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, content)

    def _info(self, name: str, revision: str, blobs: bool) -> Answer:
        repo = self._readable(name)
        commit, files = self._at(repo, revision)
        siblings = [blob.entry(path) if blobs else {"rfilename": path} for path, blob in files.items()]
        about = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings}
        fixed = {"disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return json_answer(about | fixed | {"gated": "auto" if repo.gated else False})

    def _create(self, wish: Mapping[str, Any]) -> Answer:
        name = f"{wish.get('organization') or 'loopback'}/{wish['name']}"
        about = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return json_answer(about | {"error": "You already created this model repo"}, 409)
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        self.hub.add_repo(name, {".gitattributes": _GITATTRIBUTES}, private=private)
        return json_answer(about)

    def _preupload(self, repo: Repo, revision: str, wish: Mapping[str, Any]) -> Answer:
        _, files = self._at(repo, revision)
        answers = []
        for path in (file["path"] for file in wish["files"]):
            old = files.get(path)
            oid = old and (old.sha256 if old.lfs else old.oid)
            mode = "lfs" if _is_large(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_answer({"files": answers})

    def _batch(self, wish: Mapping[str, Any]) -> Answer:
        answers = []
        for oid, size in ((file["oid"], file["size"]) for file in wish["objects"]):
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.storage:
                links = {"upload": f"{self.hub.url}/cdn/{oid}", "verify": f"{self.hub.url}/verify/{oid}"}
                answer["actions"] = {action: {"href": link} for action, link in links.items()}
            answers.append(answer)
        return json_answer({"transfer": "basic", "objects": answers})

    def _upload(self, oid: str, body: bytes) -> Answer:
        if sha256(body).hexdigest() != oid:
            raise _Refused(400, "The content does not match its sha256.")
        self.hub.storage[oid] = body
        return Answer(200, {})

    def _commit(self, repo: Repo, branch: str, operations: list[dict[str, Any]]) -> Answer:
        head, files = self._at(repo, branch)
        if branch not in repo.refs:
            raise _Refused(404, f"Not a branch: {branch}", "RevisionNotFound")
        changes: dict[str, Blob | None] = {}
        for operation in operations:
            match operation["key"], operation["value"]:
                case "header", {"parentCommit": parent} if parent != head:
                    raise _Refused(412, "A commit has happened since. Please refresh and try again.")
                case "file", {"path": path, "content": content}:
                    changes[path] = Blob(base64.b64decode(content), lfs=False)
                case "lfsFile", {"path": path, "oid": oid}:
                    if oid not in self.hub.storage:
                        raise _Refused(400, f"The content of {path} was not uploaded.")
                    changes[path] = Blob(self.hub.storage[oid], lfs=True)
                case "deletedFile", {"path": path}:
                    if path not in files:
                        raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                    changes[path] = None
        commit = repo.commit(changes, branch)
        link = f"{self.hub.url}/{repo.name}/commit/{commit}"
        return json_answer({"success": True, "commitOid": commit, "commitUrl": link})
