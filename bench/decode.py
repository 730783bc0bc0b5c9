"""How fast do weights come back, in memory?

On one thread into memory in use, with each instruction set; into fresh memory, through the public API; on two
threads. Beside ZipNN, zstd and copying.
"""

from __future__ import annotations

import torch
from contenders import LEVELS, THREADS, EachTensor, Neuzip, ZipNN, Zstd, available_isas, copiers
from data import Dataset
from rounds import Measurement, Method, measure


def ask(data: Dataset, method: Method) -> list[Measurement]:
    outs = [torch.empty_like(tensor).copy_(tensor) for tensor in data.tensors]
    frames = {level: Neuzip(data, level).encode() for level in LEVELS}
    zipnn = ZipNN(data)
    packed = {name: bytes(part) for name, part in zipnn.encode(zipnn.copies()).items()}
    zstd = Zstd(data)
    default = frames["default"]
    contenders = [
        *copiers(data, outs),
        zipnn.decoder(packed),
        ZipNN(data, THREADS).decoder(packed),
        zstd.decoder(zstd.encode()),
        *(Neuzip(data, isa=isa).decoder(default, outs) for isa in available_isas()),
        Neuzip(data, "max").decoder(frames["max"], outs),
        EachTensor(data).fresh_decoder(default),
        Neuzip(data, threads=THREADS).decoder(default, outs),
    ]
    return measure("decode", data.name, data.size, contenders, method.rounds(data.size))
