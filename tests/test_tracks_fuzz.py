"""1000 broken track files: each is refused with a reason that names it, or read; nothing else happens."""

import io
import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks import load_tracks
from tests.trackfiles import FILES, SIZE, npy, npz, write_masks

NASTY: list[Any] = [None, True, "", "x", "../..", -1, 0, 1, 2.5, 1e308, -1e308, 1e-320, 10**30, 10**400]
NASTY += [float("nan"), float("inf"), [], [[]], {}, {"a": 1}, [1, 2], [[1, 2]], [0, 0, 1, 1], [3, 2, 1, 0], "car.png"]


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in plain data."""
    inner = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [(data, key) for key, _ in inner] + [place for _, value in inner for place in places(value)]


def twisted_json(raw: bytes, rng: random.Random) -> bytes:
    data = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = places(data)
        if not found:
            break
        container, key = rng.choice(found)
        way = rng.randrange(4)
        if way == 0:
            del container[key]
        elif way == 1:
            container[key] = rng.choice(NASTY)
        elif way == 2 and isinstance(container, list):
            container.insert(key, rng.choice([container[key], *NASTY]))
        elif isinstance(container, dict):
            container[rng.choice(["box", "path", "mask", "frame", "objects", "bounding_box", "x"])] = container.pop(key)
        else:
            other, there = rng.choice(found)
            container[key] = json.loads(json.dumps(other[there])) if there in dict(places_of(other)) else 7
    return json.dumps(data).encode()


def places_of(data: Any) -> list[tuple[Any, Any]]:
    return list(data.items()) if isinstance(data, dict) else list(enumerate(data))


def twisted_text(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        k = rng.randrange(len(lines))
        parts = [str(rng.choice(NASTY)), "- ", ": ", ",", "\t", "&a *a", "!!binary x", "{", "2001-99-99", "0o8"]
        at = rng.randrange(len(lines[k]) + 1)
        lines[k] = rng.choice(
            (
                lines[k][:at] + rng.choice(parts) + lines[k][at:],
                lines[k][:at],
                lines[rng.randrange(len(lines))],
                rng.sample(parts, 1)[0],
            )
        )
    return "\n".join(lines).encode()


def twisted_array(raw: bytes, rng: random.Random) -> bytes:
    loaded = np.load(io.BytesIO(raw))
    arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    key = rng.choice(list(arrays))
    array = arrays[key]
    way = rng.randrange(5)
    if way == 0:
        array = array.astype(rng.choice([np.int8, complex, "U4", bool, np.float16, "datetime64[s]"]))
    elif way == 1 and array.dtype != bool:
        array = array.astype(float)
        array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -1e308, 1e308, 0])
    elif way == 2:
        array = array.reshape(-1)[: rng.randrange(array.size)]
    elif way == 3:
        array = np.moveaxis(array, 0, -1)
    else:
        array = array[..., None]
    arrays[key] = array
    return npy(arrays[""], arrays[""].dtype) if "" in arrays else npz(**arrays)


def broken_bytes(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((1, 3, 20))):
        at = rng.randrange(len(data))
        way = rng.randrange(3)
        if way == 0:
            data[at] = rng.randrange(256)
        elif way == 1 and len(data) > 1:
            del data[at : at + rng.randrange(1, 40)]
            data = data or bytearray(b" ")
        else:
            data[at:at] = rng.randbytes(rng.randrange(9))
    return bytes(data)


def twisted(title: str, raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return broken_bytes(raw, rng)
    if raw.startswith((b"{", b"[")):
        return twisted_json(raw, rng)
    return twisted_array(raw, rng) if title.endswith((".npy", ".npz")) else twisted_text(raw, rng)


def test_thousand_broken_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    write_masks(tmp_path)
    outcomes: Counter[str] = Counter()
    path = tmp_path / "file"
    for i in range(1008):
        title = list(FILES)[i % len(FILES)]
        path.write_bytes(twisted(title, FILES[title], rng))
        size = SIZE if rng.random() < 0.9 else None
        message = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a warning would be an answer that no one reads
                warnings.simplefilter("ignore", AnyI2VWarning)  # but ours are printed
                load_tracks(path, size=size).resample(16)
        except InputError as error:
            message = str(error)
        except Exception as error:  # what must not happen, with what is needed to see it again
            pytest.fail(f"file {i} ({title}): {error!r}: {path.read_bytes()[:400]!r}")
        outcomes["refused" if message else "read"] += 1
        if message:
            assert message.startswith(str(path)) or "object" in message
            # it says more than the file's name, and does not print the file
            assert len(str(path)) + 15 < len(message) < len(str(path)) + 700, message
    # both ways out were taken often, or the fuzz is no test
    assert min(outcomes.values()) > 100 and len(outcomes) == 2, outcomes
