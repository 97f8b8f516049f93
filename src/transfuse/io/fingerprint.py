"""What tells one model's weights from another's, without reading gigabytes."""

import hashlib
from pathlib import Path

from transfuse.io.references import resolve_model, weight_files


def model_fingerprint(reference: str) -> str:
    """A digest of where a model's weights lie, their sizes and times; of a Hub model, its name.

    Args:
        reference: a model reference.

    Returns:
        A hex digest that changes when a local model's files are replaced.

    Raises:
        ModelError: the reference means no model.
    """
    source = resolve_model(reference)
    parts = [source.kind, source.hub_id or ""]
    if source.path is not None:
        files = weight_files(source.path) if source.path.is_dir() else [source.path]
        for file in sorted(map(Path, files)):
            if file.is_file():
                status = file.stat()
                parts += [file.name, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
