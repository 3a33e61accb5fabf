"""Look at a file of weights before torch reads it.

torch.load with `weights_only` runs no code, but it unpacks whatever the file holds: a zip of 2 MB
may say that it is 2 TB. torch.save never compresses, so a file that does isn't read at all.
"""

import zipfile
from pathlib import Path

from samprior.storage.errors import CheckpointError


def check_weights_file(path: Path) -> None:
    """Raise CheckpointError if a file would be unpacked to more bytes than it has.

    Any other fault is left to whoever reads the file.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            held = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in held)
    if is_packed or sum(entry.file_size for entry in held) > path.stat().st_size:
        raise CheckpointError(
            f"{path} is compressed, which no checkpoint of torch.save is; get the official file"
        )
