"""From a model folder to a repository on the Hugging Face Hub, and on to a zoo entry.

The folder is loaded before anything is sent, and the Hub is asked afterwards what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iwm.config import WorldModelConfig
from iwm.errors import IntegrityError, InvalidConfigError, WeightsUnavailableError
from iwm.hub import RepoName
from iwm.hub_client import (
    GRACE_SECONDS,
    KNOWN_FILES,
    SLOWEST_BYTES_PER_SECOND,
    HubOptions,
    Report,
    ask,
    client,
    explained,
    within,
)
from iwm.integrity import Algorithm, hash_bytes, hash_file
from iwm.model_card import CARD_FILE, may_replace, write_card
from iwm.model_folder import CONFIG_FILE, STUDENT_FILE
from iwm.world_model import WorldModel
from iwm.zoo import HubFiles


@dataclass(frozen=True)
class Published:
    """What was published; as text, the zoo entry to paste.

    Attributes:
        config: of the model.
        hub: repository, commit and sha256 of every file.
    """

    config: WorldModelConfig
    hub: HubFiles

    def __str__(self) -> str:
        e, p = self.config.encoder, self.config.predictor
        # What the checkpoint says of its training and its tasks stays in the checkpoint.
        plain = self.config.replace(recipe={}, provenance={}, metrics={}, adapters={}, decoder=None)
        table = "".join(f"            {name!r}: {value!r},\n" for name, value in self.hub.sha256.items())
        return (
            "ZooEntry(\n"
            f"    config={plain!r},\n"
            f'    summary="{e.depth} x {e.width} encoder, {p.depth} x {p.width} world model",\n'
            "    hub=HubFiles(\n"
            f"        repo={self.hub.repo!r},\n"
            f"        revision={self.hub.revision!r},\n"
            f"        sha256={{\n{table}        }},\n"
            "    ),\n"
            ")"
        )


def push(
    folder: Path, repo_id: str, *, private: bool = False, token: str | None = None, message: str | None = None
) -> Published:
    """Publish a model folder.

    Sends `config.json`, all weights, `LICENSE` where there is one, and `README.md`: the
    folder's own where somebody has changed it, or else a model card written from the config. What the repository holds of
    another model under other names (a student, a task, its licence) goes in the same commit;
    earlier commits keep it.

    Args:
        folder: a model folder; it is loaded first, strictly.
        repo_id: `org/name`; made if it does not exist.
        private: whether a new repository is private.
        token: with permission to write; None is the stored one.
        message: of the commit.

    Raises:
        UnknownModelError: no such folder, or no such organisation.
        WeightsUnavailableError: no model in the folder, or the Hub cannot be reached or refuses.
        InvalidConfigError: the folder's config, or the name of the repository, cannot be used.
        IncompatibleWeightsError: the folder's weights or adapters do not fit its config.
        IntegrityError: what the Hub holds afterwards is not what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = RepoName.parse(repo_id)
    if name is None or name.revision is not None:
        raise InvalidConfigError(f'"{repo_id}" is no name for a repository; write "org/name".')
    options = HubOptions(token=token)
    if options.offline:
        raise WeightsUnavailableError(
            f"HF_HUB_OFFLINE is set, and {name.repo} cannot be published without a request; unset it."
        )
    model = WorldModel.from_pretrained(folder)
    config = model.config
    for adapter in config.adapters:
        model.load_adapter(adapter)
    if config.decoder:
        model.load_decoder()
    if (folder / STUDENT_FILE).exists():
        WorldModel.from_pretrained(folder, branch="student")
    contents = _contents(folder, config, name.repo)
    size = sum(path.stat().st_size for path in contents.values() if isinstance(path, Path))
    hub = client(token)
    with explained(name.repo, sending=True):
        within(GRACE_SECONDS, lambda: hub.create_repo(name.repo, private=private, exist_ok=True))
        there = ask(name.repo, "main", options).files
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file, content) for file, content in contents.items()
        ]
        operations += [CommitOperationDelete(file) for file in there if file not in contents]
        commit = within(
            GRACE_SECONDS + size / SLOWEST_BYTES_PER_SECOND,
            lambda: hub.create_commit(
                name.repo, operations, commit_message=message or f"{config.name}, sent by iwm push"
            ),
        )
    report = ask(name.repo, str(commit.oid), options)
    _check_received(contents, report, name.repo)
    sha256 = {file: _digest(content, "sha256") for file, content in contents.items()}
    return Published(config, HubFiles(repo=name.repo, revision=report.commit, sha256=sha256))


def _contents(folder: Path, config: WorldModelConfig, repo: str) -> dict[str, Path | bytes]:
    """What is sent, by name: the config first."""
    contents: dict[str, Path | bytes] = {CONFIG_FILE: folder / CONFIG_FILE}
    for path in sorted(folder.iterdir()):
        if KNOWN_FILES.fullmatch(path.name):
            contents[path.name] = path
    if may_replace(folder / CARD_FILE):
        contents[CARD_FILE] = write_card(config, repo).encode()
    return contents


def _check_received(contents: Mapping[str, Path | bytes], report: Report, repo: str) -> None:
    for file in report.files.keys() - contents.keys():
        raise IntegrityError(f"{repo}@{report.commit} holds {file}, which was not sent. Push again.")
    for file, content in contents.items():
        received = report.files.get(file)
        algorithm = received.algorithm if received else "sha256"
        expected = _digest(content, algorithm)
        if received is None or expected != received.value:
            raise IntegrityError(
                f"{file} of {repo}@{report.commit} is not what was sent: expected {algorithm} {expected}, found "
                f"{received or 'no such file'}. Push again."
            )


def _digest(content: Path | bytes, algorithm: Algorithm) -> str:
    return hash_bytes(content, algorithm) if isinstance(content, bytes) else hash_file(content, algorithm)
