"""Files that claim more than they are, or that run code when they are read carelessly."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import torch

GIANT = 10 * 2**30


class Canary:
    """A pickle of it creates a file as soon as it is read without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def forge_code(path, canary, style="zip"):
    """Write weights with code among them, and show that the code does run for who reads without care."""
    content = {"head.weight": torch.zeros(2), "extra": Canary(canary)}
    if style == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())["extra"].close()
    else:
        torch.save(content, path, _use_new_zipfile_serialization=style == "zip")
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)["extra"].close()
    assert canary.exists()
    canary.unlink()
    return path


def forge_safetensors(path, header, data=b"", length=None):
    """Write a safetensors file with any header, a dictionary or text, and any claimed length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def forge_zip(path, change=None, compression=zipfile.ZIP_STORED, add=()):
    """Write what ``torch.save`` does for four numbers, with entries changed by ``change(name, content)`` and others added."""
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.arange(4.0)})))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, content if change is None else change(name, content))
        for name, content in add:
            archive.writestr(name, content)


def claim_size(path, size):
    """Let the table of contents of a zip file claim another size for its first entry that holds numbers."""
    content = bytearray(Path(path).read_bytes())
    entry = content.index(b"PK\x01\x02")
    while not bytes(content[entry + 46 :]).startswith(b"archive/data/0"):
        entry = content.index(b"PK\x01\x02", entry + 4)
    content[entry + 24 : entry + 28] = struct.pack("<I", min(size, 2**32 - 2))
    Path(path).write_bytes(content)


class Zeros:
    """A pickle of it asks for a bytearray of any length."""

    def __init__(self, length):
        self.length = length

    def __reduce__(self):
        return bytearray, (self.length,)
