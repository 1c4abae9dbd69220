"""``attnc plot``: the mask, the bias and the weights of a spec as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attnc.ir.node import Node
    from attnc.ir.program import Program
    from attnc.testing.race import Tensors

EXAMPLE = "attnc plot examples/neighborhood_2d.attn --const rows=8 --const cols=8 --const r=1"


def plot(
    file: Annotated[Path, typer.Argument(help="The spec.")],
    out: Annotated[
        Path | None, typer.Option(help="The picture to write (PNG, PDF or SVG); by default NAME.png.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option("--size", help="Sizes, as N=64,H=4,D=32.")] = None,
    head: Annotated[int, typer.Option(min=0, help="Which head to draw.")] = 0,
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
) -> None:
    """Draw a spec's mask, bias and weights.

    The weights are those of random inputs. Needs matplotlib.
    """
    from attnc.cli import report
    from attnc.cli.compiling import checked_sizes, compiled, sizes_given, sizes_line
    from attnc.testing.inputs import grid_length, make_inputs

    try:
        import matplotlib as mpl
    except ImportError:
        raise report.usage("drawing needs matplotlib", "pip install 'attnc[plot]'") from None
    import torch

    op = compiled(file, const, "dense", name)
    given = sizes_given(size)
    length = {} if "N" in given or grid_length(op.program) else {"N": 64}
    sizes = checked_sizes(op, {"H": 4, "D": 32} | length | given)
    if head >= sizes["H"]:
        raise report.usage(f"there is no head {head} among {sizes['H']}", f"choose one of 0 to {sizes['H'] - 1}")
    tensors = make_inputs(op.program, sizes, torch.float64, seed=seed)
    drawn = planes(op.program, tensors, sizes, head)
    if not drawn:
        raise report.usage(f"{op.program.name} has no mask, score or weights over queries and keys to draw")
    mpl.use("Agg")
    path = out or Path(f"{op.program.name}.png")
    try:
        _draw(drawn, f"{op.program.name}, head {head}, {sizes_line(sizes)}", path)
    except (OSError, ValueError) as problem:
        raise report.usage(f"cannot write {path}: {problem}", "choose another file with --out") from None
    report.console().print(f"wrote {path}", markup=False)


def planes(program: Program, tensors: Tensors, sizes: dict[str, int], head: int) -> dict[str, Any]:
    """What there is to draw, by title: arrays over [M, N] of the first batch entry and one head."""
    import torch

    from attnc.ir.dense import axis_extents, evaluate_nodes

    found: dict[str, Any] = {}
    order = list(program.axes)
    extents = axis_extents(program, sizes)
    fixed = {"b": 0, "h": head}
    for title, node in nodes_to_draw(program).items():
        (value,) = evaluate_nodes([node], extents, tensors, sizes, dtype=torch.float64, order=order, fixed=fixed)
        axes = [a for a in order if a in node.axes]
        value = value[tuple(slice(None) if a in ("i", "j") else 0 for a in axes)].to(torch.float64)
        for position, axis in enumerate("ij"):
            if axis not in axes:
                value = value.unsqueeze(position)
        found[title] = value.expand(sizes["M"], sizes["N"]).numpy()
    for title, equal in (("weights of equal keys", True), ("weights of random q and k", False)):
        weights = weights_of(program, tensors, sizes, head, equal)
        if weights is not None:
            found[title] = weights
    return found


def weights_of(program: Program, tensors: Tensors, sizes: dict[str, int], head: int, equal: bool) -> Any:
    """The output for one-hot values, which is what multiplies each value; None where the spec ties v's channels to a
    tensor.

    With `equal`, q and k are zero, so that only positions and the spec's tensors make a difference.
    """
    import torch

    from attnc.ir.dense import evaluate
    from attnc.ir.node import Size
    from attnc.ir.walk import postorder

    others = [d for t in program.tensors if t.name != "v" for d in t.dims]
    if any(isinstance(n, Size) and n.name == "E" for n in postorder(others)):
        return None
    one_hot = torch.eye(sizes["N"], dtype=torch.float64).expand(*tensors["v"].shape[:2], -1, -1)
    given = {**tensors, "v": one_hot}
    if equal:
        given |= {n: torch.zeros_like(tensors[n]) for n in "qk"}
    main = program.outputs[0]
    value = evaluate(program.with_outputs((main,)), given, sizes | {"E": sizes["N"]})[main.name]
    return value[0, head].numpy() if value.shape[2:] == (sizes["M"], sizes["N"]) else None


def nodes_to_draw(program: Program) -> dict[str, Node]:
    """The mask, and the score without dot(q, k), as far as the spec has them."""
    from attnc.ir.construct import call, const
    from attnc.ir.node import Load, Max, Sum
    from attnc.ir.walk import postorder, replace

    found: dict[str, Node] = {}
    nodes = postorder(program.roots())
    domains = [set(n.domain) for n in nodes if isinstance(n, Sum | Max) and "j" in n.bound and n.domain]
    everywhere = set.intersection(*domains) if domains else set()
    if everywhere:
        found["mask"] = call("and", *everywhere)
    noted = {note.name: node for node, note in program.notes.items()}
    score = noted.get("s") or next((n.body for n in nodes if isinstance(n, Max) and n.bound == frozenset("j")), None)
    if score is not None:
        products = {n for n in postorder([score]) if isinstance(n, Sum) and _reads(n, "q") and _reads(n, "k")}
        (rest,) = replace([score], dict.fromkeys(products, const(0.0)))
        if {"i", "j"} & rest.axes and not any(isinstance(n, Load) and n.tensor in "qk" for n in postorder([rest])):
            found["score without dot(q, k)"] = rest
    return found


def _reads(node: Node, tensor: str) -> bool:
    from attnc.ir.node import Load
    from attnc.ir.walk import postorder

    return any(isinstance(n, Load) and n.tensor == tensor for n in postorder([node]))


def _draw(drawn: dict[str, Any], title: str, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(drawn), figsize=(4.2 * len(drawn), 4.2), layout="constrained", squeeze=False)
    for panel, (name, values) in zip(axes[0], drawn.items(), strict=True):
        image = panel.imshow(values, cmap="Greys" if name == "mask" else "viridis", interpolation="nearest")
        panel.set(title=name, xlabel="key j", ylabel="query i")
        if name != "mask":
            figure.colorbar(image, ax=panel, shrink=0.8)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
