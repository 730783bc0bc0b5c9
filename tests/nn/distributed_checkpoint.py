"""torch.distributed.checkpoint of compressed shards, written and read by all ranks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_fsdp import shard, train
from distributed_group import digests, local, plain_names
from models import TinyLlama, make
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from neuzip.integrations.checkpoint import CompressedSavePlanner, CompressedStager
from neuzip.nn import CompressedTensor, compress_model
from neuzip.nn import weight as weights

VOCAB = 513  # rows that two ranks cannot share evenly

# "torch.distributed is disabled", "overwriting": neither matters here.
warnings.filterwarnings("ignore", category=UserWarning)


def model(seed: int, packed: bool) -> TinyLlama:
    plain = make(seed, vocab=VOCAB, layers=1)
    return shard(compress_model(plain, min_size=64) if packed else plain)


def size(path: Path) -> int:
    dist.barrier()
    return sum(file.stat().st_size for file in path.glob("*.distcp"))


def save_and_load(folder: Path) -> Any:
    """From and to models, compressed and dense: whether all bits arrive, and how many bytes were written."""
    result: dict[str, Any] = {"sizes": {}, "equal": {}, "plain": {}}
    for source in (True, False):
        path = folder / ("packed" if source else "plain")
        dcp.save({"model": model(0, source).state_dict()}, checkpoint_id=path)
        result["sizes"][path.name] = size(path)
        for target in (True, False):
            loaded = model(1, target)
            state = {"model": loaded.state_dict()}
            dcp.load(state, checkpoint_id=path)
            loaded.load_state_dict(state["model"])
            name = f"{source} {target}"
            result["equal"][name] = digests(loaded) == digests(model(0, False))
            result["plain"][name] = plain_names(loaded) if target else []
    return result


def taken_as_it_lies(folder: Path) -> Any:
    """How many tensors are encoded while a checkpoint of the same sharding is loaded."""
    source = shard(compress_model(make(0, layers=1)))
    dcp.save(source.state_dict(), checkpoint_id=folder / "even")
    target = shard(compress_model(make(1, layers=1)))
    counts, original = [], weights.encode
    weights.encode = lambda *args: counts.append(1) or original(*args)
    try:
        dcp.load(target.state_dict(), checkpoint_id=folder / "even")
    finally:
        weights.encode = original
    return {"encoded": len(counts), "equal": digests(target) == digests(source)}


def asynchronous(folder: Path) -> Any:
    source, target = model(0, True), model(1, True)
    before = digests(source)
    stager = CompressedStager()
    saved = dcp.async_save(source.state_dict(), checkpoint_id=folder / "asynchronous", async_stager=stager)
    with torch.no_grad():
        for parameter in source.parameters():  # what happens meanwhile does not matter
            local(parameter).zero_()
    saved.result()
    state = target.state_dict()
    dcp.load(state, checkpoint_id=folder / "asynchronous")
    result = {"equal": digests(target) == before, "size": size(folder / "asynchronous"), "error": None}
    try:
        dcp.async_save(source.state_dict(), checkpoint_id=folder / "unsupported").result()
    except RuntimeError as error:
        result["error"] = str(error)
    return result


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def resumed(folder: Path) -> Any:
    """Four steps, against two, a checkpoint with the optimizer's states compressed, and two more."""
    whole = model(0, True)
    record = train(whole, adamw, steps=4)
    first = model(0, True)
    optimizer = adamw(first)
    train(first, lambda _: optimizer, steps=2)
    sizes = []
    for planner in (CompressedSavePlanner(min_size=64), None):
        states, optimizer_states = get_state_dict(first, optimizer)
        path = folder / f"resumed-{planner is None}"
        dcp.save({"model": states, "optimizer": optimizer_states}, checkpoint_id=path, planner=planner)
        sizes.append(size(path))
    second = model(1, True)
    optimizer = adamw(second)
    states, optimizer_states = get_state_dict(second, optimizer)
    state = {"model": states, "optimizer": optimizer_states}
    dcp.load(state, checkpoint_id=folder / "resumed-False")
    set_state_dict(second, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    rest = train(second, lambda _: optimizer, steps=2, first=2)
    return {"theirs": record[2:], "ours": rest, "sizes": sizes, "plain": plain_names(second)}


def full_state_dict(folder: Path) -> Any:
    """Gathered on all ranks, and scattered from rank 0, compressed and dense."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    reference = make(0, vocab=VOCAB, layers=1).state_dict()
    full = get_model_state_dict(model(0, True), options=StateDictOptions(full_state_dict=True))
    result = {"gathered": all(torch.equal(full[name], value) for name, value in reference.items())}
    for packed in (True, False):
        whole = compress_model(make(0, vocab=VOCAB, layers=1)).state_dict() if packed else reference
        target = model(1, True)
        set_model_state_dict(target, whole if dist.get_rank() == 0 else {}, options=options)
        result[f"scattered {packed}"] = digests(target) == digests(model(0, False)) and not plain_names(
            target
        )
    return result


def converted(folder: Path) -> Any:
    """Another dtype for a model that is sharded already."""
    ours, theirs = model(0, True).float(), model(0, False).float()
    kinds = {type(local(p)) is CompressedTensor for p in ours.parameters()}
    return {"equal": digests(ours) == digests(theirs), "compressed": kinds == {True}}


CASES = (save_and_load, taken_as_it_lies, asynchronous, resumed, full_state_dict, converted)
