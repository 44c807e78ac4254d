"""What identifies a file or folder: DVC's own digest where DVC made it, else one of its content."""

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from plumbline.pipeline.misfits import suggestion

DIGITS = 16
"""Of the digest of a model folder, in `revision`."""

_DIGEST = re.compile(rf"[0-9a-f]{{{DIGITS}}}")


def input_digest(path: str | Path) -> str:
    """The md5 that identifies an input: dvc.lock's where DVC runs the stage and made the input, else one of the content.

    Raises:
        FileNotFoundError: there is no such input.
    """
    path = Path(path)
    if not path.exists():
        made = path.parts[:1] in (("artifacts",), ("metrics",))
        remedy = (
            "It is an output of an earlier stage: `dvc repro` makes it, `dvc checkout` or `dvc pull` restores it."
            if made
            else "It is not made by a stage: put it there, or name another in params.yaml (`inputs` for the folder of your files)."
        )
        raise FileNotFoundError(f"{path} is missing. {remedy}")
    if "DVC_STAGE" in os.environ and (known := _locked_digests().get(path.as_posix())):
        return known
    return content_digest(path, "md5")


def content_digest(path: Path, algorithm: str = "sha256") -> str:
    """Identifies a file or folder by its content: each file's path within it, then its bytes."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for file in _files(path):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def pinned(folder: Path, revision: str | None, key: str) -> str:
    """The digest of a model folder from elsewhere, which under DVC has to be what the conf's `revision` says; `key` names that in messages.

    Such a folder is pinned by its content as a hub id is by its commit, for DVC does not watch it.

    Raises:
        ValueError: the folder is not the one that `revision` names, or under DVC nothing says which it is.
    """
    digest = content_digest(folder)
    if (revision is not None or "DVC_STAGE" in os.environ) and (complaint := wrong_pin(folder, digest, revision)):
        raise ValueError(f"{key}: {complaint}")
    return digest


def wrong_pin(folder: Path, digest: str, revision: str | None) -> str:
    """A complaint if `revision` is not the beginning of the digest of a model folder; empty if it is."""
    short = digest[:DIGITS]
    if revision == short:
        return ""
    return (
        f"expected {short!r}, the digest of the folder {folder} as it is now, found {revision!r}. DVC does not watch that folder: write its digest "
        "there, and what was made with it is made again when you write another"
    )


def pin_problems(path: str, revision: str | None, key: str = "path") -> list[str]:
    """A complaint about a model from elsewhere that is not there, or that nothing pins; empty for a folder, or for a hub id with its commit.

    Only what could be a hub id is called one. Whether the hub has it is not asked. key: that of the path, in the message.
    """
    if Path(path).is_dir():
        return []
    if complaint := _no_hub_id(path, revision):
        return [f"{key}: {complaint}"]
    if revision is None:
        return [
            f"{key}: expected a folder at {path}, or a hub id with its commit as revision; found neither. Copy the model there, correct the "
            f"path, or set revision to a commit.{_neighbour(path)}"
        ]
    return []


def _no_hub_id(path: str, revision: str | None) -> str:
    """Why something that is not a folder is not a hub id either, and what to write; empty if it may be one."""
    if "://" in path:
        owner_and_name = "/".join(urlsplit(path).path.strip("/").split("/")[:2]) or "owner/name"
        return f"expected a folder, or a hub id, found the address {path}. Write the id alone: {owner_and_name}"
    if path.startswith("~"):
        return f"expected the whole path of a folder, found {path}, in which ~ is not expanded. Write {Path(path).expanduser()}"
    if Path(path).is_file():
        made_from = "GGUF files are for llama.cpp: take the model that it was made from" if path.endswith(".gguf") else ""
        return (
            f"expected a folder with config.json, *.safetensors and a tokenizer, or a hub id, found the file {path}. "
            f"{made_from or f'Name the folder {Path(path).parent}'}"
        )
    if not _may_be_hub_id(path):
        return f"expected a folder at {path}, found none. Copy the model there, or correct the path.{_neighbour(path)}"
    if _DIGEST.fullmatch(revision or ""):
        return (
            f"expected a folder at {path}, because the revision {revision} is the digest of a folder (a hub id's is a commit of 40 digits), "
            f"found none. Copy the model there, or correct the path.{_neighbour(path)}"
        )
    return ""


def _may_be_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub id, `name` or `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def _neighbour(path: str) -> str:
    """A folder beside the one that is not there with nearly its name, as a question; empty if there is none."""
    parent = Path(path).parent
    return suggestion(path, [str(folder) for folder in parent.glob("*") if folder.is_dir()])


def _files(path: Path) -> Iterator[Path]:
    yield from [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())


def _locked_digests() -> dict[str, str]:
    return {out["path"]: out["md5"] for stage in locked_stages().values() for out in stage.get("outs", []) if "md5" in out}


def locked_stages() -> dict[str, Any]:
    """What dvc.lock says of each node that has run: its `deps`, `params` and `outs`; empty without the file."""
    try:
        stat = os.stat("dvc.lock")
    except FileNotFoundError:
        return {}
    return _read_lock(os.getcwd(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _read_lock(*_: object) -> dict[str, Any]:
    """dvc.lock of the current folder; the arguments tell one state of it from another."""
    stages: dict[str, Any] = yaml.load(Path("dvc.lock").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[
        "stages"
    ]
    return stages
