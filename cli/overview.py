"""What a report shows of a checkpoint: its tensors by layer, plane and exponent, ranked, and grouped by bytes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from neuzip.histogram import exponent_bias
from neuzip.inspection import Inspection, TensorInspection
from neuzip.layouts import DTYPES

STRAYS = 10_000
RANKED_BYTES = 4096  # a tensor below this is all header: no news among the best and the worst


@dataclass(frozen=True)
class Row:
    """A tensor in its file. place: what is said of the file before the tensor's name."""

    place: str
    tensor: TensorInspection

    @property
    def name(self) -> str:
        return self.place + self.tensor.name

    @property
    def layer(self) -> str:
        return self.place + layer_name(self.tensor.name)

    @property
    def held(self) -> float:
        """Bytes in the file or, if that is not compressed, at the bound."""
        if self.tensor.compressed_size is not None:
            return self.tensor.compressed_size
        return self.tensor.original_size if self.tensor.bound_size is None else self.tensor.bound_size

    @property
    def ratio(self) -> float:
        """held over original size; 1 for an empty tensor."""
        return self.held / self.tensor.original_size if self.tensor.original_size else 1.0

    def planes(self) -> list[tuple[int, float]]:
        """Original bytes, and bytes held, of each plane; none if the tensor is not held in planes."""
        tensor = self.tensor
        if tensor.dtype not in DTYPES or (tensor.compressed_size is not None and not tensor.plane_sizes):
            return []
        width = DTYPES[tensor.dtype].layout.width
        units = tensor.original_size // width
        if tensor.compressed_size is not None:
            return [(units, size) for size in tensor.plane_sizes]
        if tensor.bound_size is None:
            return []
        first = tensor.bound_size - (width - 1) * units
        return [(units, first), *[(units, float(units))] * (width - 1)]


@dataclass
class Layer:
    """Tensors taken together. planes: bytes held of each plane. rest: held outside planes. powers: see powers()."""

    name: str
    original: int = 0
    planes: list[float] = field(default_factory=list)
    rest: float = 0
    powers: Counter[int | None] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        held = [size for _, size in row.planes()]
        self.original += row.tensor.original_size
        self.planes += [0.0] * (len(held) - len(self.planes))
        for plane, size in enumerate(held):
            self.planes[plane] += size
        self.rest += row.held - sum(held)
        self.powers.update(powers(row.tensor))

    @property
    def held(self) -> float:
        return sum(self.planes) + self.rest


def tensor_rows(root: Path, inspections: Sequence[Inspection]) -> list[Row]:
    """All tensors, in the order of files and data. They are known by the folder of their file, if it is not `root`,
    and their name; by the file where that is not enough, as diff shows them.
    """
    placed = [(place(root, found.path), tensor) for found in inspections for tensor in found.tensors]
    count = Counter((folder, tensor.name) for (folder, _), tensor in placed)
    rows = []
    for (folder, file), tensor in placed:
        if not tensor.name:
            rows.append(Row(file, tensor))
        else:
            rows.append(Row(folder if count[folder, tensor.name] == 1 else f"{file}: ", tensor))
    return rows


def place(root: Path, path: Path) -> tuple[str, str]:
    """The folder of a file below a directory, "" or with a slash at its end, and the file."""
    file = PurePosixPath(path.relative_to(root).as_posix() if path != root else root.name)
    return "" if file.parent == PurePosixPath() else f"{file.parent}/", str(file)


def layer_name(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up.weight`; without a number the name less its last part."""
    found = re.match(r"(?:[^.]*\.)*?[0-9]+(?=\.)", name)
    return found[0] if found else name.rpartition(".")[0] or name


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9. (int() refuses very long numbers, and what is a digit elsewhere.)"""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts]


def by_layer(rows: Iterable[Row], most: int) -> list[Layer]:
    """In natural order. Of more than `most` the smallest are one layer, the last."""
    layers: dict[str, Layer] = {}
    for row in rows:
        layers.setdefault(row.layer, Layer(row.layer)).add(row)
    ranked = sorted(layers.values(), key=lambda layer: -layer.original)
    shown, others = ranked[:most], ranked[most:]
    shown.sort(key=lambda layer: natural(layer.name))
    if others:
        rest = Layer(f"{len(others)} smaller ones")
        for layer in others:
            rest.original += layer.original
            rest.rest += layer.rest
            rest.planes += [0.0] * (len(layer.planes) - len(rest.planes))
            for plane, size in enumerate(layer.planes):
                rest.planes[plane] += size
            rest.powers.update(layer.powers)
        shown.append(rest)
    return shown


def by_plane(rows: Iterable[Row]) -> dict[str, list[tuple[int, float]]]:
    """Original bytes, and bytes held, of each plane of each dtype; the dtypes by size."""
    sums: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        planes = row.planes()
        known = sums[row.tensor.dtype] or [(0, 0.0)] * len(planes)
        if planes:
            pairs = zip(known, planes, strict=True)
            sums[row.tensor.dtype] = [(a + c, b + d) for (a, b), (c, d) in pairs]
    return dict(sorted(((k, v) for k, v in sums.items() if v), key=lambda item: -sum(a for a, _ in item[1])))


def powers(tensor: TensorInspection) -> Counter[int | None]:
    """How often each power of two is the exponent of an element; None for zeros and subnormals."""
    if tensor.exponents is None:
        return Counter()
    dtype = DTYPES[tensor.dtype]
    bias = exponent_bias(dtype)
    lowest = 1 if tensor.dtype != "F8_E8M0" else 0
    found: Counter[int | None] = Counter()
    for exponent, count in tensor.exponents.items():
        found[exponent - bias if exponent >= lowest else None] += count
    return found


def by_power(rows: Iterable[Row]) -> dict[str, Counter[int | None]]:
    """powers() summed over each dtype; the dtypes by number of elements."""
    sums: dict[str, Counter[int | None]] = defaultdict(Counter)
    for row in rows:
        sums[row.tensor.dtype].update(powers(row.tensor))
    return dict(sorted(((k, v) for k, v in sums.items() if v), key=lambda item: -item[1].total()))


def window(counts: Counter[int | None], most: int) -> range:
    """The shortest run of powers that holds all but one in STRAYS of the elements, or of `most` powers the best."""
    known = sorted(power for power in counts if power is not None)
    enough = sum(counts[power] for power in known) * (1 - 1 / STRAYS)
    best, best_sum, first, covered = range(0), 0, 0, 0
    for power in known:
        covered += counts[power]
        while power - known[first] >= most or covered - counts[known[first]] >= enough:
            covered -= counts[known[first]]
            first += 1
        run = range(known[first], power + 1)
        if (min(covered, enough), -len(run)) > (min(best_sum, enough), -len(best)):
            best, best_sum = run, covered
    return best


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Tensors of some size from the lowest ratio to the highest; of equals the largest first."""
    rows = [row for row in rows if row.tensor.original_size > 0]
    large = [row for row in rows if row.tensor.original_size >= RANKED_BYTES]
    return sorted(large or rows, key=lambda row: (row.ratio, -row.tensor.original_size))


def duplicates(rows: Iterable[Row]) -> list[list[Row]]:
    """Tensors with the same bytes, the most to save first."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.tensor.original_size:
            groups[row.tensor.checksum, row.tensor.original_size].append(row)
    found = [group for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: -spare(group))


def spare(group: Sequence[Row]) -> int:
    """Original bytes of all but one of a group."""
    return group[0].tensor.original_size * (len(group) - 1)
