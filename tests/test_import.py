"""What importing does, and what it does not do."""

from __future__ import annotations

import subprocess
import sys

import neuzip


def run(code: str) -> str:
    """A fresh interpreter's output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_importing_and_using_numpy_does_not_import_torch() -> None:
    code = """
import sys, tempfile, pathlib, neuzip, neuzip.numpy, numpy as np
path = pathlib.Path(tempfile.mkdtemp(), "a.safetensors")
neuzip.numpy.save_file({"a": np.ones((100, 100), np.float32)}, path)
with neuzip.safe_open(path, "np") as file:
    assert file.get_slice("a")[1:3].shape == (2, 100)
print([name for name in sys.modules if name.split(".")[0] == "torch"])
"""
    assert run(code) == "[]"


def test_safetensors_files_need_no_numpy_and_no_other_kind() -> None:
    code = """
import os, sys, tempfile, pathlib
sys.modules["numpy"] = None
from neuzip.checkpoint import compress_file, decompress_file, verify_file
path = pathlib.Path(tempfile.mkdtemp(), "a.safetensors")
text = b'{"w":{"dtype":"BF16","shape":[300,1000],"data_offsets":[0,600000]},'
text += b'"i":{"dtype":"I64","shape":[1000],"data_offsets":[600000,608000]}}'
data = len(text).to_bytes(8, "little") + text + os.urandom(8) * 76000
path.write_bytes(data)
packed = compress_file(path).destination
assert packed.stat().st_size < 500_000
decompress_file(packed, force=True)
assert path.read_bytes() == data
print([name for name in sys.modules if name.startswith("neuzip.kinds") or name == "neuzip.archive"])
verify_file(packed)
"""
    assert run(code) == "[]"


def test_torch_is_imported_when_it_is_asked_for() -> None:
    assert run("import neuzip, sys; print('torch' in sys.modules)") == "False"


def test_without_torch_the_framework_is_refused() -> None:
    code = """
import sys
sys.modules["torch"] = None
import neuzip
try:
    neuzip.safe_open("a.safetensors", framework="pt")
except neuzip.InvalidArgument as error:
    print(type(error.__cause__).__name__, error)
"""
    assert run(code).startswith("ModuleNotFoundError framework 'pt' cannot be imported")


def test_importing_starts_no_thread_and_says_nothing() -> None:
    code = "import threading, neuzip, neuzip.numpy; print(threading.active_count())"
    assert run(code) == "1"


def test_everything_public_is_there() -> None:
    for name in neuzip.__all__:
        assert hasattr(neuzip, name)
    assert neuzip.__version__


def test_the_version_needs_no_installation() -> None:
    code = """
import importlib.metadata as metadata
def version(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = version
import neuzip
print(neuzip.__version__)
"""
    assert run(code) == "0+unknown"
