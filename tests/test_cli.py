"""The command line: exit codes, what goes to which stream, and what is left on disk."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from neuzip.cli.main import COMMANDS, program

COMMAND = [sys.executable, "-m", "neuzip.cli.main"]
SECONDS = 120


def run(*arguments: object) -> Result:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def spawn(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def weights(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.02, count).astype(ml_dtypes.bfloat16)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {
        "layer.weight": weights(300_000).reshape(600, 500),
        "layer.zero": np.zeros(5000, np.float32),
        "layer.half": weights(20_000).astype(np.float16),
        "layer.double": weights(20_000).astype(np.float64),
        "layer.eight": weights(20_000).astype(ml_dtypes.float8_e4m3fn),
        "layer.steps": np.arange(1000),
        "layer.scalar": np.array(1.5, np.float32),
        "layer.empty": np.zeros((0, 4), np.float16),
    }
    save_file(tensors, path, metadata={"format": "np"})
    return path


@pytest.fixture
def packed(plain: Path) -> Path:
    assert run("compress", plain, "-q").exit_code == 0
    return plain.with_name("model.nz.safetensors")


def assert_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("neuzip: ")
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_round_trip_of_a_file(plain: Path, tmp_path: Path) -> None:
    result = run("compress", plain)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "model.nz.safetensors" in result.stdout
    assert run("verify", tmp_path / "model.nz.safetensors").exit_code == 0
    result = run("decompress", tmp_path / "model.nz.safetensors", "-o", tmp_path / "back.safetensors")
    assert result.exit_code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == plain.read_bytes()
    assert plain.exists()


def test_round_trip_of_a_directory(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    plain.rename(folder / plain.name)
    (folder / "config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = run("compress", folder, "--rm")
    assert result.exit_code == 0
    assert "2 files (1 compressed)" in result.stdout
    assert not folder.exists()
    assert run("verify", tmp_path / "model.nz").exit_code == 0
    assert run("decompress", tmp_path / "model.nz", "--rm").exit_code == 0
    assert not (tmp_path / "model.nz").exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("command", ["compress", "decompress", "verify"])
def test_json_is_one_document(command: str, plain: Path, packed: Path, tmp_path: Path) -> None:
    source = plain if command == "compress" else packed
    more = () if command == "verify" else ("-o", tmp_path / "out.safetensors")
    for quiet in ((), ("-q",)):
        result = run(command, source, *more, "--json", *quiet, *(("--force",) if more else ()))
        assert (result.exit_code, result.stderr) == (0, "")
        document = json.loads(result.stdout)
        assert document["source"] == str(source)
        assert document["destination"] == (str(more[1]) if more else None)
        assert document["original_size"] == plain.stat().st_size
        assert document["compressed_size"] == pytest.approx(packed.stat().st_size, abs=64)
        assert [file["coding"] for file in document["files"]] == ["container"]


def test_quiet_says_nothing(plain: Path) -> None:
    result = run("compress", plain, "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_levels_and_threads(plain: Path, packed: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.nz.safetensors"
    assert run("compress", plain, "-o", small, "--level", "max", "-j", 1).exit_code == 0
    assert small.stat().st_size < packed.stat().st_size


def test_existing_destination_is_kept_without_force(plain: Path, packed: Path) -> None:
    before = packed.read_bytes()
    assert_error(run("compress", plain), str(packed), "exists")
    assert_error(run("decompress", packed), str(plain), "exists")
    packed.write_bytes(b"something else")
    assert_error(run("compress", plain, "--rm"), str(packed), "exists")
    assert packed.read_bytes() == b"something else"
    assert plain.exists()
    assert run("compress", plain, "--force").exit_code == 0
    assert packed.read_bytes() == before


def test_rm_removes_the_source_only_after_success(plain: Path, packed: Path) -> None:
    damaged = bytearray(packed.read_bytes())
    damaged[-100] ^= 1
    packed.write_bytes(damaged)
    content = plain.read_bytes()
    plain.unlink()
    assert_error(run("decompress", packed, "--rm"), str(packed))
    assert packed.exists() and not plain.exists()
    plain.write_bytes(content)
    assert run("compress", plain, "--rm", "--force").exit_code == 0
    assert packed.exists() and not plain.exists()
    assert run("decompress", packed, "--rm").exit_code == 0
    assert plain.read_bytes() == content and not packed.exists()


def test_errors_name_file_and_tensor(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    for offset in range(len(data) // 2, len(data) // 2 + 64):
        data[offset] ^= 0x55
    packed.write_bytes(data)
    for arguments in (["inspect"], ["bench"], ["decompress", "--force"]):
        assert_error(run(*arguments, packed, "--json"), str(packed), "tensor 'layer.")


@pytest.mark.parametrize("command", ["compress", "decompress", "verify", "inspect", "bench"])
def test_bad_sources_are_one_line(command: str, tmp_path: Path) -> None:
    absent = tmp_path / "absent.nz.safetensors"
    assert_error(run(command, absent, *(("-o", "x") if command == "compress" else ())), str(absent))
    garbage = tmp_path / "garbage.nz.safetensors"
    garbage.write_bytes(b"\xff" * 100)
    assert_error(run(command, garbage, *(("-o", "x") if command == "compress" else ())), str(garbage))
    empty = tmp_path / "empty.nz"
    empty.mkdir()
    if command not in ("compress", "verify"):
        assert_error(run(command, empty), str(empty))


def test_whether_a_source_may_be_read_is_no_question_of_usage(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    assert run("verify", packed).exit_code == 0  # the system allows it


def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"\x1b[31mred[bold]\n:smile:": weights(5000)}, path)
    result = run("inspect", path)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred[bold]\\n:smile:" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress",),
        ("compress", "a", "b"),
        ("compress", "a", "--level", "ultra"),
        ("compress", "a", "-j", "0"),
        ("verify", "a", "--force"),
        ("completion", "powershell"),
        ("squeeze",),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_inspect_compressed(plain: Path, packed: Path) -> None:
    result = run("inspect", packed, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["original_size"] == plain.stat().st_size
    assert document["compressed_size"] == packed.stat().st_size
    tensors = {tensor["name"]: tensor for tensor in document["files"][0]["tensors"]}
    weight = tensors["layer.weight"]
    assert (weight["dtype"], weight["shape"], weight["coding"]) == ("BF16", [600, 500], "planes")
    assert 2 < weight["exponent_entropy_bits"] < 3
    assert weight["bound_ratio"] == pytest.approx(0.5 + weight["exponent_entropy_bits"] / 16)
    assert weight["distance"] == pytest.approx(weight["ratio"] - weight["bound_ratio"])
    assert abs(weight["distance"]) < 0.02
    assert [sum(modes.values()) for modes in weight["planes"]] == [5, 5]  # chunks of 2^16 units
    assert tensors["layer.zero"]["exponent_entropy_bits"] == 0
    # The exponents of these are those of the bfloat16 values they come from, as far as they are in range.
    assert tensors["layer.double"]["exponent_entropy_bits"] == pytest.approx(
        weight["exponent_entropy_bits"], abs=0.1
    )
    assert tensors["layer.steps"]["exponent_entropy_bits"] is None
    assert tensors["layer.steps"]["bound_ratio"] is None
    assert tensors["layer.empty"]["ratio"] is None
    table = run("inspect", packed).stdout
    assert "layer.weight" in table and "600×500" in table


def test_inspect_plain_shows_the_same_bound(plain: Path, packed: Path) -> None:
    before = json.loads(run("inspect", plain, "--json").stdout)
    after = json.loads(run("inspect", packed, "--json").stdout)
    assert before["compressed_size"] is None
    for left, right in zip(before["files"][0]["tensors"], after["files"][0]["tensors"], strict=True):
        assert left["compressed_size"] is None
        for key in ("name", "shape", "original_size", "exponent_entropy_bits", "bound_size"):
            assert left[key] == right[key]
    assert "ratio" not in run("inspect", plain).stdout.splitlines()[2]


def test_bench_verifies_every_codec(plain: Path) -> None:
    result = run("bench", plain, "-j", 1, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["threads"] == 1
    names = [codec["name"] for codec in document["codecs"]]
    assert names[:3] == ["neuzip default", "neuzip max", "zstd -1"]
    for codec in document["codecs"]:
        if codec["name"].startswith(("neuzip", "zstd")):
            assert codec["error"] is None and codec["equal"]
            assert 0 < codec["ratio"] < 1.01
    assert "zstd -1" in run("bench", plain).stdout


def test_doctor() -> None:
    result = run("doctor", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["library"]["used"]
    assert sum(found["used"] for found in document["instruction_sets"]) == 1
    assert {found["name"] for found in document["instruction_sets"]} >= {"scalar", "avx2", "avx512", "neon"}
    for group in ("instruction_sets", "backends", "packages"):
        assert all(found["detail"] for found in document[group])


def test_doctor_without_torch_and_library() -> None:
    """Both as good as not installed: None in sys.modules makes an import fail."""
    script = (
        "import sys; sys.modules.update({'neuzip._native': None}); sys.argv[0] = 'neuzip'\n"
        "import neuzip.cli.diagnosis as diagnosis; diagnosis.find_spec = lambda name: None\n"
        "from neuzip.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["library", "not", "used"] in [line[:3] for line in lines]
    assert ["torch", "not", "used", "not"] in [line[:4] for line in lines]


@pytest.mark.parametrize(
    "script", ["raise SystemExit('torn')", "import os; os.abort()", "import nothing_such"]
)
def test_doctor_survives_a_broken_torch(script: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(script)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = spawn("doctor", "--json", env={**os.environ, "PYTHONPATH": path})
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    torch = json.loads(output)["packages"][0]
    assert not torch["used"] and "importing it fails" in torch["detail"]


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("neuzip ")
    for command in COMMANDS:
        assert run(command, "--help").exit_code == 0
        assert "Examples:" in run(command, "--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_NEUZIP_COMPLETE={shell}_complete" in script


def test_completion_completes() -> None:
    words = {"COMP_WORDS": "neuzip compress --l", "COMP_CWORD": "2"}
    process = spawn(env={**os.environ, **words, "_NEUZIP_COMPLETE": "bash_complete"})
    assert process.communicate(timeout=SECONDS)[0].split() == ["plain,--level"]


def test_start_up_imports_nothing_heavy(plain: Path) -> None:
    script = (
        "import sys; from neuzip.cli.main import program\n"
        "program(sys.argv[1:], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run([*command, "compress", plain], capture_output=True, text=True, check=True)
    assert not {"torch", "rich", "tqdm", "safetensors"} & set(done.stderr.split())
    done = subprocess.run([*command, "completion", "zsh"], capture_output=True, text=True, check=True)
    assert not {"torch", "rich", "tqdm", "numpy", "zstandard"} & set(done.stderr.split())


def read_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the program with all streams on a terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # Linux ends a terminal without writers so
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    return process.wait(timeout=SECONDS), b"".join(chunks).decode()


def test_progress_is_on_terminals_only(plain: Path) -> None:
    code, output = read_terminal("compress", plain)
    assert code == 0
    assert "compress model" in output and "%|" in output
    assert output.splitlines()[-1].endswith("MB/s)")
    code, output = read_terminal("compress", plain, "-q", "--force")
    assert (code, output) == (0, "")
    process = spawn("compress", plain, "--force")
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert len(output.splitlines()) == 1


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.safetensors"
    save_file({f"t{i}": np.tile(weights(1 << 20), 16) for i in range(8)}, path)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_partial_files(number: signal.Signals, big: Path) -> None:
    # A job in the background ignores it, and so would a program that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = spawn("compress", big, "--level", "max", "-j", 1)
    deadline = time.monotonic() + SECONDS
    # The lock is the first file. A signal just then may leave it, which the next call takes no notice of.
    while not any("partial" in path.name for path in big.parent.iterdir()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number, errors
    assert output == ""
    assert errors == ("neuzip: interrupted\n" if number == signal.SIGINT else "neuzip: terminated\n")
    assert list(big.parent.iterdir()) == [big]


def test_a_closed_pipe_is_no_traceback(packed: Path) -> None:
    process = spawn("inspect", packed)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=SECONDS) == 1
