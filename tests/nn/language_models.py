"""Tiny models of transformers with random weights, and comparisons to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import same_bits
from torch import nn

pytest.importorskip("transformers")

import transformers
from tiny_llama import VOCAB, tiny_llama
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from neuzip.nn import CompressedTensor

IDS = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))

transformers.utils.logging.disable_progress_bar()


def llama(tied: bool = False) -> nn.Module:
    return tiny_llama(tie_word_embeddings=tied, pad_token_id=0)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).to(torch.bfloat16)


def qwen3_moe() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)


KINDS = {"llama": llama, "tied": lambda: llama(tied=True), "gpt2": gpt2, "qwen3_moe": qwen3_moe}


def load(path: Path | str, **options: object) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, **options)


def compressed_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if isinstance(p, CompressedTensor)}


def dense_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict().items()
    return {name: t.dense() if isinstance(t, CompressedTensor) else t.detach().clone() for name, t in state}


def assert_same(left: nn.Module, right: nn.Module) -> None:
    ours, theirs = dense_state(left), dense_state(right)
    assert list(ours) == list(theirs)
    for name in ours:
        assert same_bits(ours[name], theirs[name]), name


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def trained(model: nn.Module, folder: Path, resume: Path | None = None, **options: object) -> list[float]:
    """Trainer's losses of three steps."""
    rows = [torch.randint(0, VOCAB, (16,), generator=torch.Generator().manual_seed(i)) for i in range(8)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
