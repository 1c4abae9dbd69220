"""Train a small character-level language model whose attention is an `.attn` file.

    python examples/train_char_lm.py                            # examples/causal.attn, one to two minutes on two cores
    python examples/train_char_lm.py examples/alibi.attn        # the same model with another attention
    python examples/train_char_lm.py --attention sdpa           # PyTorch's own causal attention, same seed, same curve

The text is `examples/data/sonnets.txt`. The loss curve is written as a picture (`--plot`, by default
`char_lm_<attention>.png`) and, with `--losses FILE`, as JSON. Everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

import attnc
from attnc.testing.inputs import dims_of

HERE = Path(__file__).resolve().parent
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each [B, H, N, D], to o [B, H, N, D]."""


@dataclass(frozen=True)
class Settings:
    """Size of the model and of the run."""

    layers: int = 3
    heads: int = 4
    width: int = 128
    context: int = 128
    batch: int = 16
    steps: int = 800
    warmup: int = 20
    rate: float = 3e-3
    seed: int = 0


class SpecAttention(nn.Module):
    """An attention spec as a layer. Tensors the spec asks for and gives no default become learned parameters."""

    def __init__(self, op: attnc.Op, settings: Settings) -> None:
        super().__init__()
        self.op = op
        n, d = settings.context, settings.width // settings.heads
        sizes = {"H": settings.heads, "G": settings.heads, "D": d, "E": d}
        self.tables = nn.ParameterDict()
        for tensor in self.op.program.tensors:
            if tensor.name in ("q", "k", "v") or tensor.default is not None:
                continue
            own = {s.name: n for s in self.op.program.sizes if s.name not in (*sizes, "B", "M", "N")}
            shape = dims_of(tensor, sizes | own)
            if shape is None or not tensor.is_real:
                raise SystemExit(
                    f"{op.name}: tensor {tensor.name!r} depends on the data, and there is nothing to fill it with.\n"
                    "Choose a spec whose tensors are real and have none of the sizes B, M and N."
                )
            self.tables[tensor.name] = nn.Parameter(0.02 * torch.randn(shape))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.op(q, k, v, **dict(self.tables.items()))
        return out


class CausalSdpa(nn.Module):
    """PyTorch's own causal attention."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a normalisation and with a residual connection."""

    def __init__(self, settings: Settings, attention: nn.Module) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention = attention
        self.merge = nn.Linear(width, width, bias=False)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, N, D] each, not contiguous
        o = self.attention(q, k, v)
        x = x + self.merge(o.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x + self.mlp(self.before_mlp(x))
        return out


class CharacterModel(nn.Module):
    """A decoder-only transformer over characters with learned absolute positions."""

    def __init__(self, characters: int, settings: Settings, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, settings.width)
        self.position = nn.Parameter(0.02 * torch.randn(settings.context, settings.width))
        self.blocks = nn.Sequential(*(Block(settings, attention()) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, characters, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out  # [B, N, characters]


@dataclass(frozen=True)
class Text:
    """A text as numbers: the last tenth is held out."""

    alphabet: str
    train: Tensor
    held_out: Tensor

    @staticmethod
    def load(path: Path) -> Text:
        text = path.read_text(encoding="utf-8")
        alphabet = "".join(sorted(set(text)))
        codes = torch.tensor([alphabet.index(c) for c in text])
        cut = len(codes) * 9 // 10
        return Text(alphabet, codes[:cut], codes[cut:])

    def decode(self, codes: Tensor) -> str:
        return "".join(self.alphabet[int(c)] for c in codes)


def batch_of(codes: Tensor, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows of the text and the same windows one character later, [batch, context] each."""
    starts = torch.randint(len(codes) - settings.context - 1, (settings.batch,), generator=generator)
    windows = torch.stack([codes[s : s + settings.context + 1] for s in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def cross_entropy(model: CharacterModel, tokens: Tensor, target: Tensor) -> Tensor:
    """Mean loss in nats per character."""
    return functional.cross_entropy(model(tokens).flatten(0, 1), target.flatten())


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to a tenth, as a factor of the full rate."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def train(
    settings: Settings, text: Text, attention: Callable[[], nn.Module], console: Console
) -> tuple[CharacterModel, list[float]]:
    """The trained model and the loss at every step. The seed fixes weights and batches, whatever the attention."""
    torch.manual_seed(settings.seed)
    model = CharacterModel(len(text.alphabet), settings, attention)
    batches = torch.Generator().manual_seed(settings.seed + 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, settings))
    losses: list[float] = []
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("train", total=settings.steps, loss="-")
        for _ in range(settings.steps):
            loss = cross_entropy(model, *batch_of(text.train, settings, batches))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            progress.update(task, advance=1, loss=f"{losses[-1]:.3f}")
    return model, losses


@torch.no_grad()
def held_out_loss(model: CharacterModel, text: Text, settings: Settings) -> float:
    """Mean loss over ten random batches of the text never trained on."""
    generator = torch.Generator().manual_seed(settings.seed + 2)
    losses = [cross_entropy(model, *batch_of(text.held_out, settings, generator)) for _ in range(10)]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def sample(model: CharacterModel, text: Text, settings: Settings, length: int = 240) -> str:
    """Characters drawn from the model, starting from a new line."""
    generator = torch.Generator().manual_seed(settings.seed + 3)
    codes = torch.tensor([[text.alphabet.index("\n")]])
    for _ in range(length):
        logits = model(codes[:, -settings.context :])[0, -1]
        drawn = torch.multinomial(torch.softmax(logits / 0.8, 0), 1, generator=generator)
        codes = torch.cat([codes, drawn[None]], dim=1)
    return text.decode(codes[0, 1:])


def plot(losses: list[float], held_out: float, title: str, path: Path) -> None:
    """The loss curve as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1.2, label="training batch")
    axes.axhline(held_out, linestyle="--", color="tab:orange", label=f"held out: {held_out:.3f}")
    axes.set(xlabel="step", ylabel="loss, nats per character", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=HERE / "causal.attn", help="the attention, an .attn file")
    parser.add_argument("--attention", choices=["spec", "sdpa"], default="spec", help="the spec, or PyTorch's own")
    parser.add_argument("--text", type=Path, default=HERE / "data" / "sonnets.txt", help="what to train on")
    for name, what in [
        ("steps", "optimiser steps"),
        ("batch", "windows per step"),
        ("context", "characters per window"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name), help=what)
    parser.add_argument("--layers", type=int, default=Settings.layers, help="transformer blocks")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="fixes weights and batches")
    parser.add_argument("--plot", type=Path, default=None, help="where the loss curve goes (PNG)")
    parser.add_argument("--losses", type=Path, default=None, help="where the losses go as JSON")
    return parser.parse_args()


def main() -> None:
    """Train, report, draw."""
    given = arguments()
    console = Console()
    settings = Settings(
        steps=given.steps, batch=given.batch, context=given.context, layers=given.layers, seed=given.seed
    )
    text = Text.load(given.text)
    name = "sdpa" if given.attention == "sdpa" else given.spec.stem
    begun = time.perf_counter()
    if given.attention == "sdpa":
        model, losses = train(settings, text, CausalSdpa, console)
    else:
        try:
            op = attnc.compile(given.spec)
        except attnc.SpecError as wrong:
            raise SystemExit(str(wrong)) from None
        model, losses = train(settings, text, lambda: SpecAttention(op, settings), console)
    seconds = time.perf_counter() - begun
    held_out = held_out_loss(model, text, settings)
    picture = given.plot or Path(f"char_lm_{name}.png")
    plot(losses, held_out, f"{name}: characters of {given.text.name}", picture)
    if given.losses is not None:
        given.losses.write_text(json.dumps({"attention": name, "held_out": held_out, "losses": losses}))
    console.print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {settings.steps} steps, {seconds:.0f} s")
    console.print(f"held-out loss {held_out:.3f} nats per character; curve in {picture}")
    console.print(sample(model, text, settings), style="dim", markup=False, highlight=False)


if __name__ == "__main__":
    main()
