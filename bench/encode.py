"""How fast are weights compressed, in memory?

On one thread with each instruction set, and through the public API, a call a tensor; on two threads. Beside ZipNN
and zstd.
"""

from __future__ import annotations

import heap
from contenders import THREADS, EachTensor, Neuzip, ZipNN, Zstd, available_isas
from data import Dataset
from rounds import Measurement, Method, measure


def ask(data: Dataset, method: Method) -> list[Measurement]:
    heap.give_back()
    contenders = [
        ZipNN(data).encoder(),
        ZipNN(data, THREADS).encoder(),
        Zstd(data).encoder(),
        *(Neuzip(data, isa=isa).encoder() for isa in available_isas()),
        Neuzip(data, "max").encoder(),
        EachTensor(data).encoder(),
        Neuzip(data, threads=THREADS).encoder(),
    ]
    return measure("encode", data.name, data.size, contenders, method.rounds(data.size))
