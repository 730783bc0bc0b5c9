"""Several processes: DistributedDataParallel, fully_shard and torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from models import make, same_bits
from ranks import RANKS, run_ranks
from torch.distributed.checkpoint.api import CheckpointException

from neuzip import InvalidArgument, NeuzipError
from neuzip.integrations.checkpoint import CompressedSavePlanner, DenseSavePlanner
from neuzip.nn import CompressedTensor, compress_model
from neuzip.nn.lossy import compress_model_lossy
from neuzip.nn.sharding import post_all_gather, pre_all_gather, reserved_bytes

SECONDS = 300
"""After which the processes count as hung. They take about 30 on two idle cores."""

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

# "torch.distributed is disabled, assuming the intent is to save in a single process"
one_process = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    worker = Path(__file__).with_name("distributed_worker.py")
    return run_ranks(worker, tmp_path_factory.mktemp("group"), seconds=SECONDS)


@pytest.fixture
def ddp(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result["ddp"] for result in results]


@pytest.fixture
def fsdp(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result["fsdp"] for result in results]


@pytest.fixture
def checkpoint(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result["checkpoint"] for result in results]


# --- DistributedDataParallel ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["full_adamw", "full_momentum", "fused_after_backward", "adapters"])
def test_ddp_equals_dense(ddp, case):
    for result in ddp:
        assert result[case]["ours"] == result[case]["theirs"]
        assert len(result[case]["ours"]) == 4  # three steps with losses and gradients, and the weights
    # The ranks saw different data and ended with the same weights.
    first, second = (result[case]["ours"] for result in ddp)
    assert first[0][0] != second[0][0]
    assert first[-1] == second[-1]


@pytest.mark.parametrize("case", ["full_adamw", "full_momentum", "fused_after_backward"])
def test_ddp_leaves_weights_compressed(ddp, case):
    assert [result[case]["plain"] for result in ddp] == [[], []]


def test_ddp_adapters_leave_the_base_alone(ddp):
    for result in ddp:
        assert result["adapters"]["untouched"]
        assert result["adapters"]["frozen"] == 10


def test_ddp_refuses_steps_before_gradients_are_averaged(ddp):
    assert all("in_backward=False" in result["fused_in_backward"] for result in ddp)


# --- fully_shard ------------------------------------------------------------------------------------------

TRAINED = [
    "full_adamw",
    "odd_rows",
    "kept_after_forward",
    "mixed_precision",
    "fp32",
    "other_dimension",
    "offloaded",
    "fused_in_backward",
]


@pytest.mark.parametrize(
    "case", [*TRAINED, "adapters", "growing_frames", "without_gradients", "inference_first"]
)
def test_fsdp_equals_dense(fsdp, case):
    for result in fsdp:
        assert result[case]["ours"] == result[case]["theirs"]


@pytest.mark.parametrize("case", TRAINED)
def test_fsdp_leaves_shards_compressed(fsdp, case):
    assert [result[case]["plain"] for result in fsdp] == [[], []]


def test_fsdp_keeps_frozen_shards_compressed(fsdp):
    assert all(result["adapters"]["frozen"] == 7 for result in fsdp)


def test_frames_may_outgrow_the_all_gather(fsdp):
    assert all(result["growing_frames"]["size"] > 0.9 for result in fsdp)


def test_fsdp_keeps_no_dense_shard(fsdp):
    for result in fsdp:
        memory = result["memory"]
        assert memory["control"] > 250_000  # the count sees ordinary shards
        assert memory["packed"] < 8_000  # norms
        assert memory["frames"] < 0.7 * memory["control"]


def test_a_sharded_model_cannot_be_compressed(fsdp):
    assert all("compress, then distribute" in result["sharded_first"] for result in fsdp)


def test_lossy_weights_are_not_sharded():
    lossy = compress_model_lossy(make(0), mantissa_bits=3).head.weight
    with pytest.raises(InvalidArgument, match="as compress_model makes them"):
        lossy.new_zeros((256, 64))


# What a shard sends, without processes: two ranks' inputs, put together as FSDP does.


def gathered(shards: list[CompressedTensor], rows: int, policy: Any = None, ranks: int = 2) -> list[Any]:
    mesh = SimpleNamespace(size=lambda: ranks, get_group=lambda: None)
    policy = policy or SimpleNamespace(param_dtype=None)
    size = torch.Size((rows, *shards[0].weight.shape[1:]))
    return [pre_all_gather(shard, mesh, size, policy) for shard in shards]


def shards(rows: int, scale: float = 0.02) -> tuple[torch.Tensor, list[CompressedTensor]]:
    dense = (torch.randn(rows, 96, generator=torch.Generator().manual_seed(0)) * scale).bfloat16()
    return dense, [CompressedTensor.compress(part) for part in dense.chunk(2)]


def test_frames_travel_and_not_dense_rows():
    dense, parts = shards(512)
    sent = gathered(parts, 512)
    (first,), (second,) = (inputs for inputs, _ in sent)
    assert first.dtype == torch.uint8
    assert first.shape == second.shape == (reserved_bytes(parts[0].weight),)
    assert first.nbytes < 0.8 * dense.nbytes / 2
    outputs = torch.cat([first, second])
    whole, freed = post_all_gather([outputs], sent[0][1], torch.bfloat16, None)
    assert same_bits(whole.clone(), dense)  # NumPy pins memory down
    assert [each.untyped_storage().data_ptr() for each in freed] == [whole.untyped_storage().data_ptr()]
    assert outputs.untyped_storage().nbytes() == 0
    whole.untyped_storage().resize_(0)  # as FSDP frees it


def test_the_next_parameter_is_written_in_place():
    dense, parts = shards(512)
    out = torch.nn.Parameter(torch.zeros_like(dense))
    sent = gathered(parts, 512)
    before = out._version
    assert post_all_gather([torch.cat([i for (i,), _ in sent])], sent[0][1], torch.bfloat16, out) is None
    assert same_bits(out.detach(), dense)
    assert out._version == before


@pytest.mark.parametrize("rows", [511, 512])
def test_rows_that_do_not_divide_and_casts_travel_dense(rows):
    dense = torch.randn(rows, 96)
    parts = [
        CompressedTensor.compress(torch.nn.functional.pad(part, (0, 0, 0, 256 - len(part))))
        for part in dense.chunk(2)
    ]
    policy = SimpleNamespace(param_dtype=torch.bfloat16 if rows == 512 else None)
    dtype = policy.param_dtype or torch.float32
    sent = gathered(parts, rows, policy)
    assert [inputs[0].shape for inputs, _ in sent] == [(256, 96)] * 2
    outputs = torch.cat([inputs[0] for inputs, _ in sent])
    whole, freed = post_all_gather([outputs], sent[0][1], dtype, None)
    assert same_bits(whole[:rows], dense.to(dtype))
    assert freed == ()


def test_a_damaged_frame_of_another_rank_raises():
    _, parts = shards(512)
    sent = gathered(parts, 512)
    outputs = torch.cat([inputs[0] for inputs, _ in sent])
    outputs[len(outputs) // 2 + 5000] ^= 0xFF
    with pytest.raises(NeuzipError):
        post_all_gather([outputs], sent[0][1], torch.bfloat16, None)


# --- torch.distributed.checkpoint -------------------------------------------------------------------------


def test_checkpoints_of_shards_are_compressed_and_exact(checkpoint):
    for result in checkpoint:
        saved = result["save_and_load"]
        assert set(saved["equal"].values()) == {True}
        assert len(saved["equal"]) == 4
        assert not any(saved["plain"].values())
        # The files of so small a model are a third zip archives' headers.
        assert saved["sizes"]["packed"] < 0.75 * saved["sizes"]["plain"]


def test_frames_are_loaded_as_they_lie(checkpoint):
    assert [result["taken_as_it_lies"] for result in checkpoint] == [{"encoded": 0, "equal": True}] * RANKS


def test_asynchronous_checkpoints(checkpoint):
    for result in checkpoint:
        assert result["asynchronous"]["equal"]
        assert result["asynchronous"]["size"] == result["save_and_load"]["sizes"]["packed"]
        assert "storage" in result["asynchronous"]["error"]  # without the stager: no silent garbage


def test_training_resumes_from_a_compressed_checkpoint(checkpoint):
    for result in checkpoint:
        assert result["resumed"]["ours"] == result["resumed"]["theirs"]
        packed, plain = result["resumed"]["sizes"]
        assert packed < 0.8 * plain
        assert result["resumed"]["plain"] == []


def test_full_state_dicts(checkpoint):
    for result in checkpoint:
        assert result["full_state_dict"] == {
            "gathered": True,
            "scattered True": True,
            "scattered False": True,
        }


def test_a_sharded_model_changes_its_dtype(checkpoint):
    assert [result["converted"] for result in checkpoint] == [{"equal": True, "compressed": True}] * RANKS


def save(state: dict[str, Any], path: Path, **options: Any) -> int:
    dcp.save(state, checkpoint_id=path, no_dist=True, **options)
    return sum(file.stat().st_size for file in path.glob("*.distcp"))


@one_process
@pytest.mark.parametrize("target", ["compressed", "dense"])
@pytest.mark.parametrize("source", ["compressed", "dense", "planner", "dense planner"])
def test_one_process_saves_and_loads(tmp_path, source, target):
    model = make(0, tied=True)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    if source in ("compressed", "dense planner"):
        compress_model(model)
    planner = {"planner": CompressedSavePlanner, "dense planner": DenseSavePlanner}.get(source)
    size = save({"model": model.state_dict()}, tmp_path, planner=planner and planner())
    dense_size = sum(value.nbytes for value in expected.values())
    assert (size < 0.8 * dense_size) == (source in ("compressed", "planner"))
    loaded = make(1, tied=True)
    if target == "compressed":
        compress_model(loaded)
    state = {"model": loaded.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    loaded.load_state_dict(state["model"])
    for name, value in loaded.state_dict().items():
        assert isinstance(value, CompressedTensor) == (target == "compressed" and value.numel() >= 4096)
        assert same_bits(value.dense() if isinstance(value, CompressedTensor) else value, expected[name])


@one_process
def test_damage_in_a_checkpoint_is_noticed(tmp_path):
    model = compress_model(make(0))
    save(model.state_dict(), tmp_path)
    (file,) = tmp_path.glob("*.distcp")
    data = bytearray(file.read_bytes())
    frame = bytes(model.embed.weight.weight.frame.numpy())
    place = data.index(frame)
    data[place + len(frame) // 2] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(CheckpointException, match="CorruptFrame"):
        dcp.load(make(1).state_dict(), checkpoint_id=tmp_path, no_dist=True)


@one_process
def test_readers_without_neuzip_are_told(tmp_path):
    save(compress_model(make(0)).state_dict(), tmp_path)
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(CheckpointException, match=r"neuzip\.nn\.tensor"):
            dcp.load(make(1).state_dict(), checkpoint_id=tmp_path, no_dist=True)
    finally:
        torch.serialization.add_safe_globals(known)


@pytest.mark.parametrize(
    "change", [lambda state: {**state, "shape": (3, 5)}, lambda state: {**state, "dtype": torch.float16}]
)
def test_a_pickled_weight_must_fit_its_frame(change):
    from neuzip.nn.tensor import _rebuild

    weight = CompressedTensor.compress(torch.randn(5, 3).bfloat16()).weight
    state = change({"frame": weight.frame, "shape": weight.shape, "dtype": weight.dtype})
    with pytest.raises(InvalidArgument, match="the frame holds"):
        _rebuild(CompressedTensor, tuple(state.values()), (), False, False)
