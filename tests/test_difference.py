"""neuzip.diff_files and `neuzip diff`: checkpoints in any form, paired by tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors_file import Tensor, build, model

from neuzip import InvalidArgument, compress_file, diff_files, difference
from neuzip.cli.main import program
from neuzip.difference import Form

TENSORS = model(units=4096)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(program, ["diff", *map(str, arguments)])


def write(path: Path, tensors: list[Tensor]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(build(tensors))
    return path


def flip(tensor: Tensor, bit: int) -> Tensor:
    data = bytearray(tensor.data)
    data[bit // 8] ^= 1 << bit % 8
    return replace(tensor, data=bytes(data))


def packed(path: Path) -> Path:
    destination = compress_file(path).destination
    assert destination is not None
    return destination


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole.safetensors", TENSORS)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same tensors in three files and another order, with a file that is none of them."""
    root = tmp_path / "sharded"
    for number in range(3):
        write(root / f"model-{number}.safetensors", TENSORS[::-1][number::3])
    (root / "config.json").write_text("{}")
    return root


def test_any_form_is_the_same_model(whole: Path, sharded: Path) -> None:
    forms = [whole, packed(whole), sharded, packed(sharded)]
    for left in forms:
        for right in forms:
            found = diff_files(left, right)
            assert (found.equal, found.tensors) == (len(TENSORS), ()), (left, right)
            assert (found.left, found.right) == (left, right)


@pytest.mark.parametrize("bit", [0, -1])
def test_one_bit_of_any_tensor(whole: Path, tmp_path: Path, bit: int) -> None:
    for number, tensor in enumerate(TENSORS):
        changed = list(TENSORS)
        changed[number] = flip(tensor, bit % (8 * len(tensor.data)))
        other = packed(write(tmp_path / f"other-{number}.safetensors", changed))
        (found,) = diff_files(whole, other).tensors
        assert found.name == tensor.name
        assert found.left == found.right == Form(tensor.dtype, tensor.shape)
        assert found.distance is not None
        assert (found.distance.bits, found.distance.differing) == (1, 1)


def test_slices_of_large_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences at both sides of every slice's end, in frames of many chunks."""
    monkeypatch.setattr(difference, "_SLICE_BYTES", 3 << 17)
    rng = np.random.default_rng(0)
    left = rng.normal(0, 0.02, 700_000).astype(np.float32)
    right = left.copy()
    step = (3 << 17) // 4
    places = [place for end in range(step, left.size, step) for place in (end - 1, end)] + [left.size - 1]
    right.view(np.uint32)[places] ^= 1
    files = []
    for name, values in (("left", left), ("right", right)):
        tensor = Tensor("w", "F32", values.shape, values.tobytes())
        files.append(packed(write(tmp_path / f"{name}.safetensors", [tensor])))
    seen: list[tuple[int, int]] = []
    (found,) = diff_files(*files, progress=lambda done, total: seen.append((done, total))).tensors
    assert found.distance is not None
    assert found.distance.elements == left.size
    assert found.distance.differing == found.distance.bits == len(places)
    assert found.distance.buckets == (0, len(places))
    assert seen[-1] == (left.nbytes, left.nbytes)
    assert len(seen) > 5


def test_absent_reshaped_and_retyped(tmp_path: Path) -> None:
    data = bytes(range(64))
    shared = Tensor("same", "U8", (64,), data)
    left = [
        Tensor("a", "F32", (4, 4), data),
        Tensor("b", "F32", (16,), data),
        shared,
        Tensor("c", "U8", (64,), data),
    ]
    right = [
        Tensor("a", "F32", (16,), data),
        Tensor("b", "I32", (16,), data),
        shared,
        Tensor("d", "U8", (64,), data),
    ]
    found = diff_files(write(tmp_path / "l.safetensors", left), write(tmp_path / "r.safetensors", right))
    assert found.equal == 1
    assert [(t.name, t.left, t.right, t.distance) for t in found.tensors] == [
        ("a", Form("F32", (4, 4)), Form("F32", (16,)), None),
        ("b", Form("F32", (16,)), Form("I32", (16,)), None),
        ("c", Form("U8", (64,)), None, None),
        ("d", None, Form("U8", (64,)), None),
    ]


def test_names_that_repeat_are_paired_by_file(tmp_path: Path) -> None:
    """A pipeline has a model in each folder; the right one has lost a folder, which makes its names unique."""
    data = bytes(range(64))
    tensor, other = (Tensor("w", "U8", (64,), data[::step]) for step in (1, -1))
    for side, folders in (("l", ("unet", "vae")), ("r", ("vae",))):
        for folder in folders:
            write(tmp_path / side / folder / "m.safetensors", [tensor if folder == "vae" else other])
    found = diff_files(tmp_path / "l", tmp_path / "r")
    assert found.equal == 1
    assert [(t.name, t.file, t.right) for t in found.tensors] == [("w", "unet/m.safetensors", None)]


def test_no_tensors_to_compare(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidArgument):
        diff_files(tmp_path / "none", whole)


def test_exit_codes(whole: Path, tmp_path: Path) -> None:
    changed = write(tmp_path / "changed.safetensors", [flip(TENSORS[0], 0), *TENSORS[1:]])
    same = run(whole, packed(whole))
    assert (same.exit_code, same.stderr) == (0, "")
    assert f"{len(TENSORS)} tensors, all the same" in same.stdout
    assert run(whole, changed).exit_code == 1
    for arguments in ((whole, changed, "-q"), (whole, whole, "-q")):
        assert run(*arguments).output == ""
    for trouble in ((whole, tmp_path / "absent"), (tmp_path, tmp_path / "absent")):
        result = run(*trouble)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("neuzip: ")
        assert len(result.stderr.splitlines()) == 1
    assert run(whole).exit_code == 2  # wrong usage


def test_damage_is_trouble_and_named(whole: Path) -> None:
    container = packed(whole)
    data = bytearray(container.read_bytes())
    data[-40] ^= 1
    container.write_bytes(data)
    result = run(whole, container)
    assert result.exit_code == 2
    assert TENSORS[-1].name in result.stderr


def test_what_is_shown(tmp_path: Path) -> None:
    left = np.array([0.0, 1.0, np.nan, 2.0, np.nan, -1.0, 5.0], np.float32)
    right = np.array(
        [-0.0, np.nan, 1.0, 2.0, -np.nan, 1.0, np.nextafter(np.float32(5), np.float32(6))], np.float32
    )
    name = "evil\x1b[31m\nname"
    files = [
        write(tmp_path / f"{side}.safetensors", [Tensor(name, "F32", (7,), values.tobytes())])
        for side, values in (("l", left), ("r", right))
    ]
    shown = run(*files).stdout
    assert "1 of 1 tensor differs" in shown
    assert "evil\\x1b[31m\\nname" in shown
    assert "85.7 %" in shown
    assert "2,130,706,432" in shown
    lines = shown.splitlines()
    histogram = [line.split()[:-1] for line in lines[-4:]]
    assert histogram == [["0", "1"], ["1", "1"], [], ["2^30", "…", "2^31", "−", "1", "1"]]
    document = json.loads(run(*files, "--json").stdout)
    assert (document["equal"], document["different"]) == (0, 1)
    (tensor,) = document["tensors"]
    assert tensor["name"] == name
    assert tensor["left"] == tensor["right"] == {"dtype": "F32", "shape": [7]}
    assert tensor["distance"] == {
        "elements": 7,
        "differing": 6,
        "bits": tensor["distance"]["bits"],
        "signs": 2,
        "nan_left": 1,
        "nan_right": 1,
        "nan_both": 1,
        "largest_ulp": 2130706432,
        "ulp_buckets": {"0": 1, "1": 1, "1073741824": 1},
    }
