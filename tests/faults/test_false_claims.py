"""Files with weights that claim to be more, or else, than they are: refused by name, without believing the claim."""

import io
import json
import os
import random
import struct
import zipfile

import pytest
import torch
from conftest import SLACK, peak, tiny_net
from forging import GIANT, Zeros, claim_size, forge_safetensors, forge_zip, saved
from safetensors.torch import save_file

from bmtard_hooks import create_model, load_teacher
from bmtard_hooks.models.checkpoints import load_weights, read_state_dict


@pytest.fixture
def directory(tmp_path):
    """A model as ``save_pretrained`` leaves it."""
    path = tmp_path / "model"
    create_model("resnet8_cifar", 4).backbone.save_pretrained(path)
    return path


# Claims that are not true.


def test_compressed_entries_are_refused_without_inflating_them(tmp_path, refused):
    path = tmp_path / "bomb.pt"
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.arange(4.0)})))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in source.namelist():
            with archive.open(name, "w") as entry:
                for _ in range(300 if name.endswith("data/0") else 0):
                    entry.write(bytes(2**20))
                entry.write(source.read(name))
    assert path.stat().st_size < 2**22
    refused(lambda: read_state_dict(path), "refused unopened: .* is compressed", path)


def numbers_claiming(count):
    """Changes the pickle of a file so that its only storage claims to hold so many numbers."""
    return lambda content: content.replace(b"K\x04", b"J" + struct.pack("<i", count), 1)


ONE = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
TWO = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def entry(**changes):
    return {"w": {**ONE["w"], **changes}}


SAFETENSORS = {
    "header longer than the file": lambda path: forge_safetensors(path, ONE, bytes(16), length=GIANT),
    "header of the largest length": lambda path: forge_safetensors(path, ONE, bytes(16), length=2**64 - 1),
    "header that is not JSON": lambda path: forge_safetensors(path, b"{" + b"\xff" * 40, bytes(16)),
    "header that is nested deeply": lambda path: forge_safetensors(path, b'{"a":' + b"[" * 200_000),
    "header that is a list": lambda path: forge_safetensors(path, b"[1, 2]", bytes(16)),
    "no data": lambda path: forge_safetensors(path, ONE),
    "less data": lambda path: forge_safetensors(path, ONE, bytes(15)),
    "more data": lambda path: forge_safetensors(path, ONE, bytes(17)),
    "offsets out of range": lambda path: forge_safetensors(path, entry(data_offsets=[GIANT, GIANT + 16]), bytes(16)),
    "offsets that go backwards": lambda path: forge_safetensors(path, entry(data_offsets=[16, 0]), bytes(16)),
    "negative offsets": lambda path: forge_safetensors(path, entry(data_offsets=[-16, 0]), bytes(16)),
    "overlapping offsets": lambda path: forge_safetensors(
        path, {**TWO, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
    ),
    "a hole between tensors": lambda path: forge_safetensors(
        path, {**TWO, "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, bytes(20)
    ),
    "shape larger than its data": lambda path: forge_safetensors(path, entry(shape=[GIANT]), bytes(16)),
    "shape that overflows": lambda path: forge_safetensors(path, entry(shape=[2**40, 2**40]), bytes(16)),
    "negative shape": lambda path: forge_safetensors(path, entry(shape=[-4]), bytes(16)),
    "unknown type": lambda path: forge_safetensors(path, entry(dtype="F33"), bytes(16)),
    "the same name twice": lambda path: forge_safetensors(
        path, b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "seven bytes": lambda path: path.write_bytes(bytes(7)),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_with_a_false_header_are_refused(case, tmp_path, refused):
    path = tmp_path / "w.safetensors"
    SAFETENSORS[case](path)
    refused(lambda: read_state_dict(path), "is not a whole safetensors file.*[Cc]opy or download it again", path)


def only(ending, change):
    return lambda name, content: change(content) if name.endswith(ending) else content


def write_twice(path):
    forge_zip(path)
    path.write_bytes(path.read_bytes() * 2)


def write_false_size(path):
    forge_zip(path)
    claim_size(path, GIANT)


TORCH = {
    "entry that claims gigabytes": (write_false_size, "entries claim 4,294,.* bytes, the file has"),
    "entries that share their bytes": (write_twice, "something before or after its archive"),
    "junk before the archive": (
        lambda path: path.write_bytes(b"PK junk" + saved({"w": torch.zeros(2)})), "before or after"),
    "junk after the archive": (lambda path: path.write_bytes(saved({"w": torch.zeros(2)}) + b"junk"), "before or after"),
    "storage larger than its entry": (
        lambda path: forge_zip(path, only("data.pkl", numbers_claiming(2**31 - 1))), "not a whole PyTorch file|claims"),
    "half an archive": (lambda path: path.write_bytes(saved({"w": torch.zeros(2000)})[:3000]), "not a whole PyTorch file"),
    "archive within an archive": (
        lambda path: _zip_of(path, "model.pt", saved({"w": torch.zeros(2)})), "an archive of 'model.pt', not a PyTorch file"),
    "archive without anything": (lambda path: zipfile.ZipFile(path, "w").close(), "is an archive of nothing"),
    "bytes without end": (lambda path: torch.save({"w": Zeros(GIANT)}, path), "builds a bytearray"),
    "bytes without end, old format": (
        lambda path: torch.save({"w": Zeros(GIANT)}, path, _use_new_zipfile_serialization=False), "builds a bytearray"),
    "pickle cut off": (
        lambda path: forge_zip(path, only("data.pkl", lambda content: content[:-1])), "not a whole PyTorch file"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "holds no state dict"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "holds no state dict"),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), "is a TorchScript program, which is code"),
    "expanded view": (lambda path: torch.save({"w": torch.zeros(1).expand(GIANT)}, path), "'w' .* is an expanded view"),
    "meta tensor": (lambda path: torch.save({"w": torch.empty(GIANT, device="meta")}, path), "'w' is a meta tensor"),
    "sparse tensor": (lambda path: torch.save({"w": torch.eye(4).to_sparse()}, path), "'w' is a sparse tensor"),
    "complex tensor": (lambda path: torch.save({"w": torch.zeros(4, dtype=torch.complex64)}, path), "'w' is a complex"),
    "quantised tensor": (
        lambda path: torch.save({"w": torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8)}, path),
        "'w' is a quantised tensor"),
    "pointer of Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git lfs pull"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>"), "it is a web page"),
    "text": (lambda path: path.write_text("weights, I promise"), "not a whole PyTorch file|was refused"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "not a whole PyTorch file|was refused"),
}  # fmt: skip


def _zip_of(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore:torch.quantize_per_tensor", "ignore:Validating sparse", "ignore:TypedStorage"
)
def test_torch_files_with_false_claims_are_refused(case, tmp_path, refused):
    path = tmp_path / "w.pt"
    write, match = TORCH[case]
    write(path)
    refused(lambda: read_state_dict(path), match, path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "empty", "circle", "dangling", "missing", "locked"])
def test_what_is_no_readable_file_is_refused_without_waiting(kind, name, tmp_path, refused):
    path = tmp_path / name
    match, error = {
        "directory": ("is a directory", ValueError),
        "pipe": ("is a pipe, socket or device", ValueError),
        "device": ("is a pipe, socket or device", ValueError),
        "empty": ("is empty", ValueError),
        "circle": ("a link that leads nowhere or in a circle", FileNotFoundError),
        "dangling": ("a link that leads nowhere or in a circle", FileNotFoundError),
        "missing": ("does not exist", FileNotFoundError),
        "locked": ("may not be read by this user", PermissionError),
    }[kind]
    makers = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "empty": path.touch,
        "circle": lambda: path.symlink_to(path),
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
        "missing": lambda: None,
        "locked": lambda: (path.write_bytes(saved({"w": torch.zeros(2)})), path.chmod(0)),
    }
    makers[kind]()
    if kind == "locked" and os.geteuid() == 0:  # root reads everything
        os.seteuid(65534)
    try:
        refused(lambda: read_state_dict(path), match, path, error)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_files_of_a_directory_are_checked_before_they_are_read(name, directory, refused):
    (directory / "model.safetensors").unlink()
    if name == "model.safetensors":
        forge_safetensors(directory / name, ONE, bytes(16), length=GIANT)
    else:
        torch.save({"w": Zeros(GIANT)}, directory / name)
    refused(lambda: create_model(str(directory)), "not a whole safetensors file|builds a bytearray", directory / name)


def test_files_that_are_damaged_anywhere_are_read_or_refused(tmp_path, record_property):
    random_source, outcomes = random.Random(0), {"read": 0, "refused": 0}
    state = tiny_net().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    wholes = {
        "w.pt": saved(state),
        "w.pth": saved(state, _use_new_zipfile_serialization=False),
        "w.safetensors": (tmp_path / "whole.safetensors").read_bytes(),
    }
    before = peak(anew=True)
    for name, whole in wholes.items():
        path = tmp_path / name
        for _ in range(100):
            content = bytearray(whole)
            for _ in range(random_source.choice([1, 4, 32])):
                # names, shapes and sizes stand at the ends of the files
                place = random_source.randrange(1200) * random_source.choice([1, -1])
                content[place % len(content)] = random_source.randrange(256)
            path.write_bytes(content[: random_source.choice([len(content), random_source.randrange(1, len(content))])])
            try:
                load_weights(tiny_net(), path)
                outcomes["read"] += 1
            except ValueError as error:
                assert str(path) in str(error)
                outcomes["refused"] += 1
    assert peak() - before < SLACK and outcomes["refused"] > 150 and sum(outcomes.values()) == 300
    record_property("hostile files refused", 1)  # one, because what torch.save writes is not the same every time


# Numbers that nothing can be computed with.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value, directory, tmp_path, refused):
    student = create_model("resnet8_cifar", 4).backbone.timm_model
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    state["conv1.weight"].view(-1)[3] = value
    torch.save(state, tmp_path / "w.pt")
    refused(
        lambda: load_teacher("resnet8_cifar", tmp_path / "w.pt", num_classes=4),
        r"conv1.weight: 1 of 432 NaN or infinite\. Pass a checkpoint from before",
        tmp_path / "w.pt",
    )
    broken = create_model(str(directory)).backbone
    with torch.no_grad():
        next(broken.parameters()).view(-1)[3] = value
    broken.save_pretrained(directory)
    refused(lambda: load_teacher(str(directory)), "1 of 432 NaN or infinite", directory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype, tmp_path):
    source, target = tiny_net(1), tiny_net(2)
    torch.save({name: tensor.to(dtype) for name, tensor in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_refused(dtype, tmp_path, refused):
    net = tiny_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.save({name: tensor.to(dtype) for name, tensor in before.items()}, tmp_path / "w.pt")
    refused(lambda: load_weights(net, tmp_path / "w.pt"), f"head.bias: {dtype}", tmp_path / "w.pt")
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_float64_weights_that_overflow_are_refused(tmp_path, refused):
    state = {name: tensor.double() for name, tensor in tiny_net().state_dict().items()}
    state["head.bias"][0] = 1e300
    torch.save(state, tmp_path / "w.pt")
    refused(
        lambda: load_weights(tiny_net(), tmp_path / "w.pt"), "head.bias: 1 of 4 NaN or infinite", tmp_path / "w.pt"
    )


def test_files_are_told_apart_by_their_content(tmp_path):
    save_file(tiny_net(1).state_dict(), tmp_path / "w.bin")
    target = tiny_net(2)
    load_weights(target, tmp_path / "w.bin")
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), tiny_net(1).parameters(), strict=True))


@pytest.mark.parametrize("length", [0x0380, 0x4B50, 0x8B1F], ids=["pickle", "zip", "gzip"])
def test_header_whose_length_looks_like_another_format_is_read(length, tmp_path):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + struct.pack("<2f", 1.0, 2.0))
    assert read_state_dict(path)["weight"].tolist() == [1.0, 2.0]
