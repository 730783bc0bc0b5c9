"""How fast are weights compressed, in memory? On one thread with each instruction set, and on two threads."""

from __future__ import annotations

from contenders import THREADS, Neuzip, ZipNN, Zstd, available_isas
from data import Dataset
from rounds import Measurement, Method, measure


def ask(data: Dataset, method: Method) -> list[Measurement]:
    contenders = [
        ZipNN(data).encoder(),
        ZipNN(data, THREADS).encoder(),
        Zstd(data).encoder(),
        *(Neuzip(data, isa=isa).encoder() for isa in available_isas()),
        Neuzip(data, "max").encoder(),
        Neuzip(data, threads=THREADS).encoder(),
    ]
    return measure("encode", data.name, data.size, contenders, method.rounds(data.size))
