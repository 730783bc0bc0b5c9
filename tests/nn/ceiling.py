"""Loads, runs and trains a model, and measures or limits the memory that this takes.

``ceiling.py FOLDER WARM_FOLDER KIND MODE BYTES``: KIND is compressed or dense, MODE a key of MODES; BYTES is what the
process may take beside what it has before it loads the model, 0 for no limit. Prints what came out, as JSON.

``ceiling.py RESULT.json`` measures all kinds and modes, each in a process of its own: the table of README.md.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import neuzip
from neuzip.nn import load_model
from neuzip.optim import fused
from neuzip.torch import load_file

IDS = torch.arange(16).view(1, 16)
KINDS = ("dense", "compressed")
MODES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]] | None] = {
    "generate": None,
    "lora": (torch.optim.AdamW, {"lr": 1e-3}),
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3}),
}
STEPS = 3


def make(folder: Path, **sizes: int) -> int:
    """A Llama checkpoint and, beside it, the compressed one; the bytes of its weights."""
    config = LlamaConfig(
        vocab_size=512, num_attention_heads=8, num_key_value_heads=8, dtype="bfloat16", **sizes
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def weight(shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            return torch.ones(shape, dtype=torch.bfloat16)
        return noise.repeat(-(-shape.numel() // noise.numel()))[: shape.numel()].view(shape)

    folder.mkdir()
    save_file({n: weight(s) for n, s in shapes.items()}, folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    neuzip.compress_file(folder)
    return 2 * sum(math.prod(shape) for shape in shapes.values())


def make_both(folder: Path) -> int:
    """The model that counts, ``large``, and one that is worked with before; the bytes of the first one's weights."""
    make(folder / "small", hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    return make(folder / "large", hidden_size=512, intermediate_size=1408, num_hidden_layers=24)


def child(folder: Path, kind: str, mode: str, size: int = 0) -> subprocess.CompletedProcess[str]:
    suffix = ".nz" if kind == "compressed" else ""
    folders = [str(folder / f"{name}{suffix}") for name in ("large", "small")]
    command = [sys.executable, __file__, *folders, kind, mode, str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if size:
        # The limit counts addresses, those of free memory in malloc's heap too, which take no memory. So it maps more.
        environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def load(folder: str, kind: str) -> Any:
    # Not from_pretrained: safetensors maps files as private memory, which the limit counts though it takes none.
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    if kind == "compressed":
        load_model(model, folder)
    else:
        model.load_state_dict(load_file(Path(folder, "model.safetensors"), backend="pread"), assign=True)
    return model


def work(folder: str, kind: str, mode: str) -> dict[str, Any]:
    model = load(folder, kind)
    tokens = model.generate(IDS, max_new_tokens=2, do_sample=False)
    losses: list[float] = []
    chosen = MODES[mode]
    if chosen is not None:
        optimizer_class, options = chosen
        if mode == "lora":
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
        trained = [each for each in model.parameters() if each.requires_grad]
        opt: torch.optim.Optimizer = (
            fused(model, optimizer_class, **options)
            if kind == "compressed"
            else optimizer_class(trained, **options)
        )
        for _ in range(STEPS):
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
    return {"tokens": tokens.tolist(), "losses": losses}


def status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)[0])


def work_and_measure(folder: str, warm_folder: str, kind: str, mode: str, size: str) -> None:
    torch.set_num_threads(1)
    work(warm_folder, kind, mode)  # libraries load what they load only when they are first used
    data, resident = status("VmData"), status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    print("ready", flush=True)
    if int(size):
        # Of private writable memory, mapped or in the heap: what VmData counts.
        resource.setrlimit(resource.RLIMIT_DATA, (data + int(size),) * 2)
    result = work(folder, kind, mode)
    print(json.dumps({**result, "peak": status("VmHWM") - resident}))


def table(result_path: Path) -> int:
    """The peak of every mode, ordinary and compressed, and whether the results are equal."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        size = make_both(Path(name))
        for mode in MODES:
            results = {}
            for kind in KINDS:
                done = child(Path(name), kind, mode)
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    return 1
                results[kind] = json.loads(done.stdout.splitlines()[-1])
            same = all(results["dense"][key] == results["compressed"][key] for key in ("tokens", "losses"))
            rows[mode] = {
                "identical": same,
                **{f"{kind}_peak": results[kind]["peak"] for kind in KINDS},
                "ratio": round(results["compressed"]["peak"] / results["dense"]["peak"], 3),
            }
            print(mode, rows[mode], flush=True)
    document = {"weight_bytes": size, "torch": torch.__version__, "modes": rows}
    result_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["identical"] for row in rows.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) > 2:
        work_and_measure(*sys.argv[1:])
    else:
        sys.exit(table(Path(sys.argv[1])))
