"""Model folders from elsewhere, pinned by their content as hub ids are by their commit: for DVC nothing depends on such a folder."""

import hashlib
import os
from pathlib import Path


def pinned(folder: Path, revision: str | None, key: str) -> str:
    """The digest of a model folder, which under DVC has to be what the conf's `revision` says; `key` names that in messages.

    Raises:
        ValueError: the folder is another than `revision` says, or under DVC nothing says which it is.
    """
    digest = folder_digest(folder)
    found = digest[:16]
    if revision not in (None, found) or (revision is None and "DVC_STAGE" in os.environ):
        raise ValueError(
            f"{key}: expected {found!r}, the digest of the folder {folder} as it is now, found {revision!r}. DVC does not watch that "
            "folder: write its digest there, and what was made with it is made again when you write another"
        )
    return digest


def folder_digest(folder: Path) -> str:
    """Identifies a folder by its content: the same path may hold another model tomorrow."""
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
