"""The bad containers: each breaks one rule of spec.md §7. `mint.py` writes them."""

import random

from bad_headers import Bad, change
from encoder import container, planes_frame, safetensors
from good_vectors import small_checkpoint


def bad_containers() -> Bad:
    """The bad containers by file name."""
    tensors, frames = small_checkpoint(random.Random(7))
    del tensors["weight"], frames["weight"]
    original = safetensors(tensors, {"format": "pt"})
    whole = container(original, tensors, frames)
    length = 8 + int.from_bytes(whole[:8], "little")
    renamed = {name.replace("flag", "flog"): row for name, row in tensors.items()}
    fewer = {name: row for name, row in tensors.items() if name != "mask"}
    halved = frames | {"scale": planes_frame("F32", [32], bytes(128), "raw raw raw raw").encode()}
    retyped = frames | {"scale": planes_frame("C64", [32], tensors["scale"][2], "raw raw raw raw").encode()}
    broken = frames | {"scale": change(frames["scale"], 100, frames["scale"][100] ^ 1)}
    gap = whole.replace(b'"dtype":"U8","shape":[5]', b'"dtype":"U8","shape":[4]')
    bad = {
        "empty": (b"", "truncated", "§7: no bytes"),
        "cut_header": (whole[: length - 1], "truncated", "§7: the bytes end in the header"),
        "cut_data": (whole[:-1], "truncated", "§7: the bytes end in the data"),
        "bytes_after": (whole + b"\0", "corrupt", "§7: bytes after the data"),
        "header_length": (b"\xff" * 8 + whole[8:], "corrupt", "§7: a header of more than 100 MB"),
        "header_text": (change(whole, 8, 0x5B), "corrupt", "§7: the header is not JSON"),
        "shape": (gap, "corrupt", "§7: shape and offsets disagree"),
        "version_2": (
            container(original, tensors, frames, neuzip_version="2"),
            "unsupported",
            "§9: a later version",
        ),
        "no_base64": (container(original, tensors, frames, neuzip_header="#"), "corrupt", "§7: no base64"),
        "no_zstd": (
            container(original, tensors, frames, neuzip_header="AAAA"),
            "corrupt",
            "§7: no zstd frame",
        ),
        "size": (
            container(original, tensors, frames, neuzip_size=str(len(original) + 1)),
            "corrupt",
            "§7: the original header does not cover the data",
        ),
        "size_text": (
            container(original, tensors, frames, neuzip_size="0x10"),
            "corrupt",
            "§7: not a decimal",
        ),
        "sha256": (
            container(original, tensors, frames, neuzip_sha256="0" * 64),
            "corrupt",
            "§7: another sha256",
        ),
        "name_renamed": (container(original, renamed, frames), "corrupt", "§7: the headers list other names"),
        "name_missing": (container(original, fewer, frames), "corrupt", "§7: the headers list other names"),
        "frame_shape": (container(original, tensors, halved), "corrupt", "§7: a frame of another shape"),
        "frame_dtype": (container(original, tensors, retyped), "corrupt", "§7: a frame of another dtype"),
        "frame_corrupt": (container(original, tensors, broken), "corrupt", "§7: a frame that is corrupt"),
    }
    return {f"container_{name}.nz.safetensors": row for name, row in bad.items()}
