"""How fast do weights come back, in memory?

On one thread into memory in use, with each instruction set; into fresh memory, through the public API, a model or a
tensor in a call; on two threads. Beside ZipNN, zstd and copying.
"""

from __future__ import annotations

import heap
from alone import alone
from contenders import LEVELS, THREADS, EachTensor, Neuzip, ZipNN, Zstd, available_isas, copiers
from data import Dataset
from rounds import PEER, Measurement, Method, measure

from neuzip._system import room


def ask(data: Dataset, method: Method) -> list[Measurement]:
    heap.give_back()
    out = memory_in_use(data)
    encoders = {level: Neuzip(data, level) for level in LEVELS}
    frames = {level: encoder.encode() for level, encoder in encoders.items()}
    zipnn = ZipNN(data)
    packed = zipnn.packed()
    zstd = Zstd(data)
    default = frames["default"]
    contenders = [
        *copiers(data, out),
        zipnn.decoder(packed),
        ZipNN(data, THREADS).decoder(packed),
        zstd.decoder(zstd.encode()),
        *(Neuzip(data, isa=isa).decoder(default, out) for isa in available_isas()),
        Neuzip(data, "max").decoder(frames["max"], out),
        Neuzip(data).loader(),
        EachTensor(data).fresh_decoder(default),
        Neuzip(data, threads=THREADS).decoder(default, out),
    ]
    found = measure("decode", data.name, data.size, contenders, method.rounds(data.size))
    return found + alone(ask_zipnn_in_use, data, method)


def ask_zipnn_in_use(data: Dataset, method: Method) -> list[Measurement]:
    """ZipNN at its best: malloc has kept the memory of its last result, which it cannot be given. neuzip takes turns
    with it, and is not reported twice.
    """
    heap.keep()
    zipnn, neuzip = ZipNN(data), Neuzip(data)
    contenders = [zipnn.reusing_decoder(zipnn.packed()), neuzip.decoder(neuzip.encode(), memory_in_use(data))]
    found = measure("decode", data.name, data.size, contenders, method.rounds(data.size))
    return [row for row in found if row.label.role == PEER]


def memory_in_use(data: Dataset) -> memoryview:
    out = room(data.size)
    out[:] = data.contents
    return out
