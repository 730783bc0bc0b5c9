"""The only writer of the golden vectors: `python formats/mint.py` writes them, `--check` compares them.

vectors/good/ has frames NAME.nzf, containers NAME.nz.safetensors and archives NAME.nz, with their original bytes
NAME.raw. vectors/bad/ has such files that break one rule of spec.md each; errors.json names the kind of
error (§1) and the rule.
"""

import argparse
import json
import sys
from pathlib import Path

from archive_vectors import bad_archives, good_archives
from bad_chunks import bad_chunks
from bad_containers import bad_containers
from bad_headers import bad_headers
from bad_streams import bad_streams
from good_vectors import good

VECTORS = Path(__file__).with_name("vectors")


def mint() -> dict[str, bytes]:
    """All files of vectors/ by relative path."""
    files = {}
    for name, (encoded, original) in (good() | good_archives()).items():
        files[f"good/{name}"] = encoded
        files[f"good/{name.partition('.')[0]}.raw"] = original
    errors = {}
    bad = bad_headers() | bad_chunks() | bad_streams() | bad_containers() | bad_archives()
    for name, (encoded, kind, reason) in sorted(bad.items()):
        files[f"bad/{name}"] = encoded
        errors[name] = {"error": kind, "reason": reason}
    files["bad/errors.json"] = (json.dumps(errors, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def compare(files: dict[str, bytes]) -> list[str]:
    """What is missing, superfluous or different in vectors/."""
    present = {path.relative_to(VECTORS).as_posix(): path for path in VECTORS.rglob("*") if path.is_file()}
    differences = [f"superfluous: {name}" for name in present if name not in files]
    for name, data in files.items():
        if name not in present:
            differences.append(f"missing: {name}")
        elif present[name].read_bytes() != data:
            differences.append(f"different: {name}")
    return sorted(differences)


def write(files: dict[str, bytes]) -> None:
    """Makes vectors/ hold these files and no others."""
    for path in VECTORS.rglob("*"):
        if path.is_file() and path.relative_to(VECTORS).as_posix() not in files:
            path.unlink()
    for name, data in files.items():
        path = VECTORS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the golden vectors.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a vector differs")
    files = mint()
    if not parser.parse_args().check:
        write(files)
        return 0
    differences = compare(files)
    print("\n".join(differences) or f"{len(files)} files are as minted")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
