"""What a file with weights claims, compared with what it is, before anything in it is opened.

Readers of such files trust the sizes that stand in them. So a file of kilobytes can ask for gigabytes: a zip archive whose
entries are compressed, a pickle that builds a long array of zeros, a tensor of a billion numbers over a storage of one. A
file can also be no file at all: a pipe, which waits for ever. Everything here reads a few bytes and refuses the rest.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import stat
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as the safetensors library limits it."""

LONGEST_PICKLE = 64 * 2**20
"""Bytes of the pickle inside a zip archive: it only names tensors, whose numbers lie beside it."""

FAMILIAR = {
    b"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull`, or download the file itself",
    b"<!DOCTYPE": "a web page: download the file behind it",
    b"<html": "a web page: download the file behind it",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive: unpack it",
}
"""How files begin that are often passed by mistake."""

MAKES_BYTES = {"builtins bytearray", "__builtin__ bytearray"}
"""What a pickle without code can still call to fill memory: it takes a length."""


def require_file(path: Path) -> int:
    """Return the size of a file that can be read, without opening it, so that nothing can wait.

    Raises:
        FileNotFoundError: if there is none, or only a link that leads nowhere or in a circle.
        PermissionError: if it may not be read.
        ValueError: if it is empty, or a directory, a pipe or a device.
    """
    try:
        found = path.stat()
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read by this user: change its permissions (chmod u+r)") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links; ValueError: a name with \0
        leads = ": it is a link that leads nowhere or in a circle" if path.is_symlink() else ""
        raise FileNotFoundError(f"checkpoint {path} does not exist{leads} (looked in {Path.cwd()})") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(
            f"{path} is a directory: pass the file with the weights, or the directory itself as the model's name"
        )
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a pipe, socket or device: pass an ordinary file with weights")
    if found.st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): copy or download it again")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user: change its permissions (chmod u+r)")
    return found.st_size


def check_claims(path: Path) -> str:
    """Compare what a file with weights claims with its size, reading little of it.

    Args:
        path: a file in the format of safetensors, or one that ``torch.save`` wrote, in today's or in its old format.

    Returns:
        ``safetensors`` or ``torch``, by content.

    Raises:
        FileNotFoundError: see ``require_file``.
        PermissionError: see ``require_file``.
        ValueError: see ``require_file``; and if the file claims more than it holds, is cut off, or is something else.
    """
    size = require_file(path)
    with path.open("rb") as stream:
        start = stream.read(32)
        # first, because the length that such a file begins with may look like anything
        is_safetensors = _looks_like_safetensors(start, size)
        known = next((what for magic, what in FAMILIAR.items() if start.startswith(magic)), None)
        if known is not None and not is_safetensors:
            raise ValueError(f"{path} holds no weights: it is {known}")
        if path.suffix == ".safetensors" or is_safetensors:
            stream.seek(0)
            _check_safetensors(stream, path, size)
            return "safetensors"
        stream.seek(0)
        if start.startswith(b"PK"):
            _check_zip(stream, path, size)
        else:
            _check_pickles(stream, path)
    return "torch"


def _looks_like_safetensors(start: bytes, size: int) -> bool:
    return len(start) > 8 and start[8:9] == b"{" and 8 + struct.unpack("<Q", start[:8])[0] <= size


def _check_safetensors(stream: BinaryIO, path: Path, size: int) -> None:
    start = stream.read(9)
    if start.startswith((b"PK", b"\x80")) and not _looks_like_safetensors(start, size):
        raise ValueError(
            f"{path} is called safetensors but was written by torch.save: give it its own ending (.pt), and it is read "
            "without running code from it"
        )
    stream.seek(min(len(start), 8))
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
    if length > min(LONGEST_HEADER, size - 8):
        raise ValueError(
            f"{path} is not a whole safetensors file: its header claims {length:,} bytes, the file has {size:,}. Copy or "
            "download it again"
        )
    try:
        json.loads(stream.read(length), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: its header is no list of tensors ({error}). Copy or download it again"
        ) from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})[:3]
        raise ValueError(f"{', '.join(map(repr, twice))} stands in it more than once")
    return found


def _check_zip(stream: BinaryIO, path: Path, size: int) -> None:
    """Compare an archive's table of contents with the file; nothing is unpacked.

    ``torch.save`` stores and never compresses, so an entry cannot be larger than the file, nor all of them together.
    """
    advice = "write it again with torch.save, or as safetensors"
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise ValueError(f"{path} is not a whole PyTorch file ({error}): copy or download it again") from error
    entries = archive.infolist()
    if any("/code/" in entry.filename for entry in entries):
        raise ValueError(f"{path} is a TorchScript program, which is code: pass a file with model.state_dict() alone")
    compressed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if compressed is not None:
        raise ValueError(
            f"{path} was refused unopened: {compressed.filename!r} in it is compressed, and would become "
            f"{compressed.file_size:,} bytes. torch.save never compresses: {advice}"
        )
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise ValueError(
            f"{path} was refused unopened: its entries claim {claimed:,} bytes, the file has {size:,}: {advice}"
        )
    # readers look for the table of contents in different places if there is more than one, or something around the archive
    stream.seek(max(0, size - 22))
    if stream.read(4) != b"PK\x05\x06" or min((entry.header_offset for entry in entries), default=0) != 0:
        raise ValueError(f"{path} was refused unopened: there is something before or after its archive: {advice}")
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if not pickles:
        names = ", ".join(repr(entry.filename) for entry in entries[:3]) or "nothing"
        raise ValueError(f"{path} is an archive of {names}, not a PyTorch file: unpack it, and pass what is in it")
    for entry in pickles:
        if entry.file_size > LONGEST_PICKLE:
            raise ValueError(
                f"{path} was refused unopened: {entry.filename!r} has {entry.file_size:,} bytes: {advice}"
            )
        try:
            content = io.BytesIO(archive.read(entry))
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, struct.error) as error:
            raise ValueError(f"{path} is not a whole PyTorch file ({error}): copy or download it again") from error
        _check_pickle(content, path)


def _check_pickles(stream: BinaryIO, path: Path) -> None:
    """Look through the pickles that the old format begins with: magic number, version, system, content, keys."""
    for _ in range(5):
        if not _check_pickle(stream, path):
            return  # torch says what is wrong with it


def _check_pickle(stream: BinaryIO, path: Path) -> bool:
    named: set[str] = set()
    whole = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in damaged text
            named.update(
                str(value) for operation, value, _ in pickletools.genops(stream) if operation.name == "GLOBAL"
            )
    except (ValueError, EOFError, struct.error, IndexError, MemoryError, OverflowError):
        whole = False
    if named & MAKES_BYTES:
        raise ValueError(
            f"{path} was refused: it builds a bytearray, which no weights need and which can fill the memory. Save "
            "model.state_dict() alone"
        )
    return whole


def check_contents(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain numbers lying in the file, without touching their memory.

    Args:
        tensors: as they were read.
        path: the file, for its size and for messages.

    Raises:
        ValueError: for sparse, quantised, nested, complex or empty-handed (meta) tensors, and for views that have more
            numbers than their storage.
    """
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        kind = _special_kind(tensor)
        if kind is not None:
            raise ValueError(
                f"{path}: {name!r} is a {kind} tensor: save plain ones (weight.dequantize(), .to_dense(), .cpu())"
            )
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, but only {storage.nbytes():,} bytes lie behind it: it is "
                "an expanded view. Save weight.contiguous() instead"
            )
        storages[storage.data_ptr()] = storage.nbytes()
    total, size = sum(storages.values()), path.stat().st_size
    if total > size:
        raise ValueError(f"{path} claims {total:,} bytes of weights, the file has {size:,}: copy or download it again")


def _special_kind(tensor: Tensor) -> str | None:
    checks = {
        "meta": tensor.is_meta,
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided,
        "complex": tensor.is_complex(),
    }
    return next((kind for kind, found in checks.items() if found), None)


def check_saved_directory(directory: Path) -> None:
    """Check every file of weights in a directory that ``save_model`` or ``save_pretrained`` wrote; see ``check_claims``."""
    for path in sorted({*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")}):
        check_claims(path)
