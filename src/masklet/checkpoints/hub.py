"""Where the files of a model are: in the package, in a folder, or on the Hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub import errors as hub_errors

from masklet.errors import CheckpointError

StrPath = str | os.PathLike[str]

PREPROCESSOR = "preprocessor_config.json"
EMBEDDED = "nano"
_EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights" / EMBEDDED


SPEEDS = ("fastest", "fast", "medium", "slow")
"""Classes of operations for encoding an image: up to 50, 400 and 1000 billion, and more."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model with a short name."""

    name: str
    source: str
    """Hub repository, or "embedded"."""
    megabytes: int
    parameters: int
    speed: str
    """One of ``SPEEDS``."""
    licence: str = "Apache-2.0"
    """Licence of the weights, as their authors state it."""
    filename: str | None = None
    """The ``.pt`` file in the repository, where that is not a model folder."""


def _of_meta(name: str, megabytes: int, parameters: int, speed: str) -> KnownModel:
    return KnownModel(name=name, source=f"facebook/{name}", megabytes=megabytes, parameters=parameters, speed=speed)


KNOWN_MODELS = (
    KnownModel(name=EMBEDDED, source="embedded", megabytes=10, parameters=4_755_506, speed="fastest"),
    KnownModel(name="edgetam", source="yonigozlan/EdgeTAM-hf", megabytes=56, parameters=13_896_050, speed="fastest"),
    _of_meta("sam2.1-hiera-tiny", 156, 38_962_754, "fast"),
    _of_meta("sam2.1-hiera-small", 184, 46_060_610, "fast"),
    _of_meta("sam2.1-hiera-base-plus", 323, 80_850_434, "medium"),
    _of_meta("sam2.1-hiera-large", 898, 224_446_898, "slow"),
    _of_meta("sam2-hiera-tiny", 156, 38_946_242, "fast"),
    _of_meta("sam2-hiera-small", 184, 46_044_098, "fast"),
    _of_meta("sam2-hiera-base-plus", 323, 80_833_922, "medium"),
    _of_meta("sam2-hiera-large", 898, 224_430_386, "slow"),
    KnownModel(
        name="medsam2",
        source="wanglab/MedSAM2",
        megabytes=156,
        parameters=38_962_754,
        speed="fast",
        licence="CC-BY-SA-4.0, research and education",
        filename="MedSAM2_latest.pt",
    ),
)

_FINE_TUNED_SIDES = {"medsam2": 512}
"""Side of the input that ``.pt`` files were trained at, which do not store it, by the beginning of their names."""


@dataclass(frozen=True)
class HubOptions:
    """How files are fetched. All but ``subfolder`` matter for Hub repositories only."""

    revision: str | None = None
    """Branch, tag or commit."""
    token: str | None = None
    """Token for a private repository."""
    cache_dir: StrPath | None = None
    """Folder of the cache, if not the usual one."""
    local_files_only: bool = False
    """Only look into the cache."""
    force_download: bool = False
    """Fetch again what is in the cache."""
    subfolder: str = ""
    """Subfolder of the repository or the folder."""

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any]) -> HubOptions:
        """Those of keyword arguments, from which they are removed."""
        taken = {field.name: kwargs.pop(field.name) for field in fields(cls) if field.name in kwargs}
        return cls(**{name: value for name, value in taken.items() if value is not None})

    def changed(self) -> dict[str, Any]:
        """The arguments of ``hf_hub_download``: revision and token, and the others where they are not the default."""
        others = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"revision": self.revision, "token": self.token} | {name: v for name, v in others.items() if v}


DEFAULT_HUB = HubOptions()


def meta_file(name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB) -> Path | None:
    """Path of a file of weights in Meta's layout, fetched if a known model is one; None for folders and repositories.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    name = os.fspath(name_or_path)
    if name != EMBEDDED and Path(name).is_file():
        return Path(name)
    known = next((model for model in KNOWN_MODELS if model.name == name and model.filename), None)
    if known is None or Path(name).is_dir():
        return None
    assert known.filename is not None
    return _fetch(known.source, known.filename, hub)


def side_of_meta_file(path: Path) -> int | None:
    """The side of the input that a file of weights was trained at, if its name is that of a known fine-tune."""
    sides = (side for start, side in _FINE_TUNED_SIDES.items() if path.name.lower().startswith(start))
    return next(sides, None)


def locate(name_or_path: StrPath, filename: str, hub: HubOptions = DEFAULT_HUB) -> Path:
    """Path of one file of a model: in the package, in a folder, or in the cache of the Hub (fetched if missing)."""
    name = os.fspath(name_or_path)
    if (folder := _folder_of(name)).is_dir():
        folder /= hub.subfolder
        if not (folder / filename).is_file():
            there = ", ".join(sorted(entry.name for entry in folder.glob("*"))[:8]) or "nothing"
            exported = ". An exported folder is loaded with engine='onnx'" if any(folder.glob("*.onnx")) else ""
            raise CheckpointError(f"{folder} holds no {filename} (it holds {there}): expected a model folder{exported}")
        return folder / filename
    if folder.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise CheckpointError(f"there is no file {name}; looked in {Path.cwd()}")
    repository = {model.name: model.source for model in KNOWN_MODELS}.get(name, name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or repository.startswith((".", "/")):
        known = [model.name for model in KNOWN_MODELS]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CheckpointError(
            f"no model {name!r}: {hint}Expected one of {', '.join(known)}, a Hub repository (owner/name), a model "
            "folder or a .pt file that exists"
        )
    return _fetch(repository, filename, hub)


def find(name_or_path: StrPath, filename: str, hub: HubOptions = DEFAULT_HUB) -> Path | None:
    """As ``locate``, but None for a file that the model does not have."""
    folder = _folder_of(name_or_path)
    if folder.is_dir() and not (folder / hub.subfolder / filename).is_file():
        return None
    try:
        return locate(name_or_path, filename, hub)
    except CheckpointError as error:
        cause = error.__cause__
        # Offline, nobody knows whether the repository has a file that is not in the cache. Most have the preprocessor.
        is_unknown = isinstance(cause, hub_errors.LocalEntryNotFoundError) and filename == PREPROCESSOR
        if isinstance(cause, hub_errors.EntryNotFoundError) and not is_unknown:
            return None
        raise


def push_folder(
    folder: StrPath,
    filenames: Sequence[str],
    *,
    repo_id: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads files of a folder to the Hub, into a repository that is made if it does not exist.

    Args:
        folder: Where the files are.
        filenames: Their names.
        repo_id: ``owner/name``; None for the name of the folder, under the account of the token.
        token: Token of an account that may write there; None for the one that ``hf auth login`` stored.
        private: Whether a new repository is private.
        commit_message: None for one that says what was uploaded.
        revision: Branch.
        create_pr: Whether to open a pull request instead.

    Returns:
        The address of the commit.
    """
    api = HfApi(token=token)
    repository = api.create_repo(repo_id or Path(folder).name, private=private, exist_ok=True).repo_id
    done = api.upload_folder(
        repo_id=repository,
        folder_path=Path(folder),
        allow_patterns=list(filenames),
        commit_message=commit_message or f"Upload {', '.join(filenames)}",
        revision=revision,
        create_pr=create_pr,
    )
    return str(done)


def _folder_of(name_or_path: StrPath) -> Path:
    return _EMBEDDED_FOLDER if os.fspath(name_or_path) == EMBEDDED else Path(name_or_path)


def _fetch(repository: str, filename: str, hub: HubOptions) -> Path:
    try:
        return Path(hf_hub_download(repository, filename, **hub.changed()))
    except hub_errors.GatedRepoError as error:
        raise CheckpointError(f"{repository} is gated: ask for access on its page, then pass token=") from error
    except hub_errors.RepositoryNotFoundError as error:
        near = difflib.get_close_matches(repository, [m.source for m in KNOWN_MODELS], n=1)
        hint = f"; did you mean {near[0]}?" if near else "; if it is private, pass token="
        raise CheckpointError(
            f"there is no folder {repository!r} here, and the Hub has no such repository{hint}"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {hub.revision!r}") from error
    except hub_errors.LocalEntryNotFoundError as error:  # also after a lost connection
        raise CheckpointError(
            f"{filename} of {repository} is not in the local cache and the Hub cannot be reached. To work offline, "
            f"fetch it once where there is a network (hf download {repository}) and set HF_HUB_OFFLINE=1, copy the "
            f"folder here and give its path, or use the embedded model, {EMBEDDED!r}"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repository} holds no {filename}: expected a transformers SAM 2 model") from error
    except (hub_errors.HFValidationError, OSError) as error:  # an invalid name; an error of the Hub or of the disk
        reason = " ".join(str(error).split())  # the Hub answers in several lines
        raise CheckpointError(f"cannot fetch {filename} of {repository!r}: {reason}") from error
