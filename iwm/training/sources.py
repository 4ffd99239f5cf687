"""What `--data` names: folders of images, or one stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iwm.errors import InvalidConfigError
from iwm.images import file_list_hash, list_images
from iwm.training.config import RunConfig
from iwm.training.data import FolderSource, Source, check_readable
from iwm.training.streams import StreamSource, is_stream


def open_data(data: Sequence[str | Path], size: int, config: RunConfig) -> tuple[Source, dict[str, Any]]:
    """Open folders of images (subfolders are read), tar shards or a dataset of the Hub.

    Args:
        data: several folders, or one stream.
        size: of the crops in pixels.
        config: of the run.

    Returns:
        The source, and what to say of it in a model's provenance.

    Raises:
        InvalidConfigError: a stream beside something else.
        InvalidDataError: no images, or none that can be read.
    """
    streams = [str(name) for name in data if is_stream(str(name))]
    if streams:
        if len(data) > 1:
            raise InvalidConfigError(f"--data takes one stream alone, not {', '.join(map(str, data))}.")
        source = StreamSource(streams[0], size, config)
        return source, {"data": [{"stream": streams[0], "files_sha256": source.files_sha256}]}
    by_folder = {Path(folder): list_images(Path(folder)) for folder in data}
    paths = [path for files in by_folder.values() for path in files]
    listings = [
        {"folder": str(folder), "images": len(files), "files_sha256": file_list_hash(folder, files)}
        for folder, files in by_folder.items()
    ]
    hashes = "".join(str(d["files_sha256"]) for d in listings)
    listing = f"{len(paths)} images (files {hashlib.sha256(hashes.encode()).hexdigest()[:12]})"
    check_readable(paths)
    return FolderSource(paths, size, config, listing), {"data": listings, "images": len(paths)}
