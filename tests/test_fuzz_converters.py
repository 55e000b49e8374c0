"""Damaged and hostile files: each ends in one clear error that names the file, and nothing is written.

Seeds are fixed, so a failure can be repeated; `FUZZ` in the environment asks for more files than the usual ones.
"""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.errors import AnyI2VError
from weights_converters.command import convert

from . import foreign

COUNT = int(os.environ.get("FUZZ", "520"))

Mutation = Callable[[random.Random, bytes], bytes]
TRACE = "anyi2v_fuzz_trace"


def truncate(pick: random.Random, raw: bytes) -> bytes:
    return raw[: pick.choice([pick.randrange(len(raw)), pick.randrange(200), len(raw) - 1 - pick.randrange(64)])]


def header_of(raw: bytes) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length]


def with_header(raw: bytes, header: bytes) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def flip_header(pick: random.Random, raw: bytes) -> bytes:
    """Bits of the table's names, shapes, dtypes and offsets; those of the numbers would be other good weights."""
    (length,) = struct.unpack("<Q", raw[:8])
    changed = bytearray(raw)
    for _ in range(pick.randint(1, 4)):
        place = pick.choice([pick.randrange(8), 8 + pick.randrange(length)])
        changed[place] ^= 1 << pick.randrange(8)
    return bytes(changed)


def edit(pick: random.Random, raw: bytes, change: Callable[[dict[str, dict[str, object]], str], None]) -> bytes:
    table = json.loads(header_of(raw))
    key = pick.choice([name for name in table if name.startswith(("model.diffusion", "first_stage_model.encoder"))])
    change(table, key)
    return with_header(raw, json.dumps(table).encode())


def rename(pick: random.Random, raw: bytes) -> bytes:
    name = pick.choice(
        ["{}x", "x.{}", "module.{}.y", "{}.{}", "model.diffusion_model.input_blocks.99999999.0.op.weight"]
    )

    def change(table: dict[str, dict[str, object]], key: str) -> None:
        table[name.format(key, key)] = table.pop(key)

    return edit(pick, raw, change)


def redtype(pick: random.Random, raw: bytes) -> bytes:
    """Another dtype, of the same width or not, known or not."""
    dtype = pick.choice(["I32", "U32", "F64", "F16", "BOOL", "F8_E4M3", "X", "", 7, None])
    return edit(pick, raw, lambda table, key: table[key].update(dtype=dtype))


def enlarge(pick: random.Random, raw: bytes) -> bytes:
    shape = pick.choice([[2**62], [2**63, 2], [10**30], [-1], [1.5], ["4"], [10**6, 10**6], [0], None, [[1]]])
    return edit(pick, raw, lambda table, key: table[key].update(shape=shape))


def move(pick: random.Random, raw: bytes) -> bytes:
    offsets = pick.choice([[0, 0], [4, 2], [0, 2**63], [-4, 4], [], ["0", "4"], None, [0, 10**30]])
    return edit(pick, raw, lambda table, key: table[key].update(data_offsets=offsets))


def nest(pick: random.Random, raw: bytes) -> bytes:
    depth = pick.choice([10**3, 10**5])
    return with_header(raw, b'{"a":' * depth + b"1" + b"}" * depth)


def nothing_finite(pick: random.Random, raw: bytes) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(header_of(raw))
    used = [entry for key, entry in table.items() if key.startswith("model.diffusion_model.")]
    start = 8 + length + pick.choice(used)["data_offsets"][0]
    value = pick.choice([float("nan"), float("inf"), float("-inf")])
    return raw[:start] + struct.pack("<f", value) + raw[start + 4 :]


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (TRACE,)


def saved(content: object, new: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def carry_code(pick: random.Random, raw: bytes) -> bytes:
    good: dict[str, object] = {"a": torch.zeros(3)}
    content = pick.choice([{**good, "x": Code()}, {"state_dict": Code()}, Code(), [Code()]])
    if pick.random() < 0.3:
        return pickle.dumps(content, protocol=pick.randrange(6))
    return saved(content, new=pick.random() < 0.7)


def claim_storage(pick: random.Random, raw: bytes) -> bytes:
    """Tensors larger than what is stored: by strides of 0, or by sizes in the pickle itself."""
    if pick.random() < 0.5:
        size = pick.choice([(10**12,), (10**6, 10**6), (2**40, 4)])
        key = "model.diffusion_model.input_blocks.0.0.weight"
        return saved({key: torch.zeros(1).expand(size), "first_stage_model.x": torch.zeros(1)}, new=True)
    archive = zipfile.ZipFile(io.BytesIO(saved({"model.diffusion_model.out.0.bias": torch.zeros(7)})))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"K\x07", b"J\xff\xff\xff\x7f")
            changed.writestr(name, content)
    return stream.getvalue()


def damage_archive(pick: random.Random, raw: bytes) -> bytes:
    """Bits of a PyTorch archive's program or directory, which lie at its ends."""
    content = bytearray(saved({f"model.diffusion_model.out.{i}.bias": torch.zeros(4) for i in range(20)}))
    for _ in range(pick.randint(1, 6)):
        place = pick.randrange(min(3000, len(content)))
        content[pick.choice([place, len(content) - 1 - place])] ^= 1 << pick.randrange(8)
    return bytes(content)


def noise(pick: random.Random, raw: bytes) -> bytes:
    return pick.choice([b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 40)]) + pick.randbytes(pick.randrange(300))


SAFETENSORS: list[Mutation] = [truncate, flip_header, rename, redtype, enlarge, move, nest, nothing_finite, noise]
PICKLES: list[Mutation] = [truncate, carry_code, claim_storage, damage_archive, noise]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    theirs = {key: tensor.contiguous() for key, tensor in foreign.ldm().items()}
    save_file(theirs, folder / "base.safetensors")
    torch.save(theirs, folder / "base.ckpt")
    foreign.write(foreign.motion(), folder / "mm.safetensors")
    return {path.name: path for path in folder.iterdir()}


def error_of(path: Path, out: Path) -> str | None:
    """What converting says, or None if it succeeds. Any other exception fails the test."""
    try:
        convert(foreign.options(path, out, dtype="fp32"))
    except AnyI2VError as error:
        return str(error)
    out.unlink()
    return None


@pytest.mark.parametrize("part", range(4))
def test_each_damaged_file_is_refused_by_name(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.chdir(tmp_path)
    # flipped bits may leave a file that is good all the same: other bytes of metadata, a bit of white space
    unharmed = 0
    for seed in range(part, COUNT, 4):
        pick = random.Random(seed)
        pickled = seed // 4 % 3 == 0
        name = f"mutant_{seed}{'.ckpt' if pickled else '.safetensors'}"
        mutation = pick.choice(PICKLES if pickled else SAFETENSORS)
        source = good["base.ckpt" if pickled else "base.safetensors"]
        mutant = tmp_path / name
        mutant.write_bytes(mutation(pick, source.read_bytes()))
        message = error_of(mutant, tmp_path / "out" / "x.safetensors")
        if message is None:
            unharmed += 1
            assert mutation is flip_header, f"{mutation.__name__} {seed} was not noticed"
        else:
            assert name in message, f"{mutation.__name__} {seed}: {message}"
            assert not list(tmp_path.glob("out/*")), f"{mutation.__name__} {seed} left something behind"
        mutant.unlink()
    assert not (tmp_path / TRACE).exists()
    assert unharmed <= COUNT / 4 * 0.05


def test_unchanged_files_pass(good: dict[str, Path], tmp_path: Path) -> None:
    for name in ("base.ckpt", "base.safetensors"):
        out = tmp_path / f"{name}.safetensors"
        convert(foreign.options(good[name], out, motion_module=good["mm.safetensors"]))
        assert out.exists()
