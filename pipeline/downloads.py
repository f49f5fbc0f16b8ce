"""Weights published at an address -> their file, downloaded once to where torchvision looks; checked each time."""

import hashlib
import http.client
import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import torch

from pipeline.errors import UserError


def downloaded(name: str, weights: str, url: str, otherwise: str) -> Path:
    """The file of named weights where torchvision keeps it, downloaded if absent.

    Args:
        name: of the network, for messages.
        weights: their name, for messages.
        url: where they are, in a file whose name ends in the beginning of its SHA-256.
        otherwise: the option that names a copy of the file instead, as "--weights FILE".

    Raises:
        UserError: it cannot be downloaded, carries no sum to check it by, or is damaged.
    """
    file_name = Path(urlparse(url).path).name
    published = re.search(r"-([0-9a-f]{8,})\.", file_name)
    if published is None:
        raise UserError(f"{file_name} of {name} carries no SHA-256 to check it by; download it and use {otherwise}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), published[1], progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"cannot download {file_name}, the weights {weights} of {name} ({reason}); put the file from "
                f"{url} into {path.parent} (where torchvision looks; TORCH_HOME moves it), or name any copy of "
                f"it by {otherwise}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(published[1]):
        raise UserError(
            f"{path} is damaged (its SHA-256 starts with {digest[: len(published[1])]}); delete it and run again to "
            f"download it, or name another copy by {otherwise}"
        )
    return path
