"""The bad containers: each breaks one rule of spec.md §7. `mint.py` writes them."""

import random
import struct

from bad_headers import Bad, change
from encoder import Tensors, container, kept, planes_frame, safetensors
from good_vectors import small_checkpoint


def without_weight() -> tuple[Tensors, dict[str, bytes]]:
    """The small checkpoint without its largest tensor, and frames."""
    tensors, frames = small_checkpoint(random.Random(7))
    del tensors["weight"], frames["weight"]
    return tensors, frames


def metadata() -> Bad:
    """The metadata of containers."""
    tensors, frames = without_weight()
    original = safetensors(tensors, {"format": "pt"})

    def changed(**changes: str) -> bytes:
        return container(original, tensors, frames, **changes)

    longer = str(len(original) + 1)
    nested = safetensors(tensors, {"neuzip.size": "1"})
    return {
        "version_3": (changed(neuzip_version="3"), "unsupported", "§9: a later version"),
        "no_base64": (changed(neuzip_header="#"), "corrupt", "§7: no base64"),
        "no_zstd": (changed(neuzip_header="AAAA"), "corrupt", "§7: no zstd frame"),
        "nested": (container(nested, tensors, frames), "corrupt", "§7: a container of a container"),
        "size": (changed(neuzip_size=longer), "corrupt", "§7: the original header does not cover the data"),
        "size_text": (changed(neuzip_size="0x10"), "corrupt", "§7: not a decimal"),
        "no_checksums": (changed(neuzip_checksums="#"), "corrupt", "§7: checksums that are no base64"),
        "checksums_short": (changed(neuzip_checksums=""), "corrupt", "§7: too few checksums"),
        "checksums_long": (changed(neuzip_checksums="A" * 16), "corrupt", "§7: too many checksums"),
        "checksums_wrong": (changed(neuzip_checksums="A" * 10 + "="), "corrupt", "§7: another checksum"),
        "sha256": (changed(neuzip_sha256="0" * 64), "corrupt", "§7: another sha256"),
    }


def structure() -> Bad:
    """Headers and data of containers."""
    tensors, frames = without_weight()
    original = safetensors(tensors, {"format": "pt"})
    whole = container(original, tensors, frames)
    length = 8 + int.from_bytes(whole[:8], "little")
    renamed = {name.replace("flag", "flog"): row for name, row in tensors.items()}
    fewer = {name: row for name, row in tensors.items() if name != "mask"}
    halved = frames | {"scale": planes_frame("F32", [32], bytes(128), "raw raw raw raw").encode()}
    retyped = frames | {"scale": planes_frame("C64", [32], tensors["scale"][2], "raw raw raw raw").encode()}
    broken = frames | {"scale": change(frames["scale"], 200, frames["scale"][200] ^ 1)}
    gap = whole.replace(b'"dtype":"U8","shape":[5]', b'"dtype":"U8","shape":[4]')
    return {
        "empty": (b"", "truncated", "§7: no bytes"),
        "cut_header": (whole[: length - 1], "truncated", "§7: the bytes end in the header"),
        "cut_data": (whole[:-1], "truncated", "§7: the bytes end in the data"),
        "bytes_after": (whole + b"\0", "corrupt", "§7: bytes after the data"),
        "header_length": (b"\xff" * 8 + whole[8:], "corrupt", "§7: a header of more than 100 MB"),
        "header_text": (change(whole, 8, 0x5B), "corrupt", "§7: the header is not JSON"),
        "shape": (gap, "corrupt", "§7: shape and offsets disagree"),
        "name_renamed": (container(original, renamed, frames), "corrupt", "§7: the headers list other names"),
        "name_missing": (container(original, fewer, frames), "corrupt", "§7: the headers list other names"),
        "frame_shape": (container(original, tensors, halved), "corrupt", "§7: a frame of another shape"),
        "frame_dtype": (container(original, tensors, retyped), "corrupt", "§7: a frame of another dtype"),
        "frame_corrupt": (container(original, tensors, broken), "corrupt", "§7: a frame that is corrupt"),
    }


def kept_files() -> Bad:
    """Containers of version 2."""
    tensors, frames = without_weight()
    original = safetensors(tensors, {"format": "pt"})
    null = safetensors(tensors, {}).replace(b"{", b'{"__metadata__":null,', 1)
    null = (int.from_bytes(null[:8], "little") + 20).to_bytes(8, "little") + null[8:]

    def packed(**changes: str) -> bytes:
        return kept(original, '{"format"', '{@,"format"', **changes)

    whole = packed()
    start, longer = int.from_bytes(whole[:8], "little") + 8, str(len(original) + 1)
    # The length that the original would have if it had {} for its metadata
    empty = kept(null, "null", "{@}", neuzip_size=str(len(null) - 2))
    return {
        "kept_version_1": (packed(neuzip_version="1"), "corrupt", "§7: no original header"),
        "kept_of_version_1": (
            container(original, tensors, frames, neuzip_version="2"),
            "corrupt",
            "§7.1: frames",
        ),
        "kept_blank": (retext(whole, '"neuzip.size"', ' "neuzip.size"'), "corrupt", "§7.1: a blank"),
        "kept_header": (
            retext(whole, '"format"', '"neuzip.header":"","format"'),
            "corrupt",
            "§7.1: metadata of version 1",
        ),
        "kept_form": (empty, "corrupt", "§7.1: the size of another row"),
        "kept_form_none": (
            packed(neuzip_size=str(len(original) - 17)),
            "corrupt",
            "§7.1: the size of a row that is not there",
        ),
        "kept_size": (packed(neuzip_size=longer), "corrupt", "§7.1: another size"),
        "kept_size_zero": (packed(neuzip_size="0" + longer), "corrupt", "§7.1: not a decimal"),
        "kept_size_small": (packed(neuzip_size="0"), "corrupt", "§7.1: a size below the data's"),
        "kept_sha256": (packed(neuzip_sha256="0" * 64), "corrupt", "§7.1: another sha256"),
        "kept_checksums_short": (packed(neuzip_checksums=""), "corrupt", "§7.1: too few checksums"),
        "kept_checksums_long": (packed(neuzip_checksums="A" * 16), "corrupt", "§7.1: too many checksums"),
        "kept_checksums_wrong": (packed(neuzip_checksums="AAAAAA=="), "corrupt", "§7.1: another checksum"),
        "kept_data": (change(whole, start, whole[start] ^ 1), "corrupt", "§7.1: a byte is another"),
        "kept_cut": (whole[:-1], "truncated", "§7.1: the bytes end in the data"),
    }


def retext(whole: bytes, old: str, new: str) -> bytes:
    """The file with a part of its safetensors header replaced."""
    length = 8 + int.from_bytes(whole[:8], "little")
    text = whole[8:length].decode()
    assert text.count(old) == 1
    header = text.replace(old, new).encode()
    return struct.pack("<Q", len(header)) + header + whole[length:]


def headers() -> Bad:
    """Safetensors headers that the container's reader must not believe."""
    tensors, frames = without_weight()
    whole = container(safetensors(tensors, {"format": "pt"}), tensors, frames)
    size, start = len(frames["scale"]), len(whole) - 6  # mask and flag come last
    end = start - 8 - int.from_bytes(whole[:8], "little")
    mask, flag = f'"data_offsets":[{end},{end + 5}]', f'"data_offsets":[{end + 5},{end + 6}]'
    scale, none = f'"shape":[{size}]', f'"none":{{"dtype":"U8","shape":[{len(frames["none"])}]'
    return {
        "header_list": (struct.pack("<Q", 8) + b"[]      ", "corrupt", "§7: the header is not an object"),
        "header_metadata": (
            retext(whole, '"format":"pt"', '"format":1'),
            "corrupt",
            "§7: metadata is not strings",
        ),
        "header_name_twice": (retext(whole, '"flag"', '"mask"'), "corrupt", "§7: a name appears twice"),
        "header_no_dtype": (retext(whole, none, none.replace("dtype", "type")), "corrupt", "§7: no dtype"),
        "header_negative": (retext(whole, '"shape":[5]', '"shape":[-5]'), "corrupt", "§7: a negative shape"),
        "header_fraction": (
            retext(whole, '"shape":[5]', '"shape":[5.0]'),
            "corrupt",
            "§7: a fraction in a shape",
        ),
        "header_overlap": (
            retext(whole, flag, f'"data_offsets":[{end + 4},{end + 5}]')[:-1],
            "corrupt",
            "§7: two tensors overlap",
        ),
        "header_gap": (
            retext(whole, flag, f'"data_offsets":[{end + 6},{end + 7}]') + b"\0",
            "corrupt",
            "§7: a gap between two tensors",
        ),
        "header_swapped": (
            retext(whole, mask, f'"data_offsets":[{end + 5},{end}]'),
            "corrupt",
            "§7: an end before its start",
        ),
        "frame_shape_2d": (
            retext(whole, scale, f'"shape":[1,{size}]'),
            "corrupt",
            "§7: a frame that is not one row",
        ),
    }


def bad_containers() -> Bad:
    """The bad containers by file name."""
    return {
        f"container_{name}.nz.safetensors": row
        for name, row in (metadata() | structure() | headers() | kept_files()).items()
    }
