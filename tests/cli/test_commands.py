"""What each command does when all is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from attnc.cli.app import COMMANDS
from attnc.cli.new import template_names
from attnc.ir.options import REWRITES

Attnc = Callable[..., Result]
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--size", "N=48,H=2,D=8", "--rounds", "2")


@pytest.mark.parametrize("name", [c[0] for c in COMMANDS])
def test_help_has_an_example(attnc: Attnc, name: str) -> None:
    result = attnc(name, "--help")
    assert result.exit_code == 0
    assert f"Example: attnc {name}" in " ".join(result.stdout.split())


def test_every_command_is_listed(attnc: Attnc) -> None:
    text = attnc("--help").stdout
    for name in ("check", "fmt", "run", "verify", "inspect", "bench", "plot", "explain", "new", "list"):
        assert f" {name} " in text


def light(arguments: list[str], folder: Path) -> str:
    """What a command prints, in a process of its own that must import neither torch nor triton."""
    code = (
        "import sys\nfrom attnc.cli.app import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, cwd=folder, env=os.environ.copy(), text=True).stdout


def test_light_commands_import_neither_torch_nor_triton(tmp_path: Path) -> None:
    for arguments in (["--help"], ["check", str(EXAMPLES / "alibi.attn")], ["explain", "E001"], ["new", "x"]):
        assert light(arguments, tmp_path)


def test_check_says_ok(attnc: Attnc) -> None:
    result = attnc("check", EXAMPLES / "alibi.attn")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "ok (alibi)" in result.stdout


def test_check_takes_directories_and_the_standard_input(attnc: Attnc) -> None:
    listed = attnc("check", EXAMPLES).stdout.splitlines()
    assert len(listed) == len(list(EXAMPLES.rglob("*.attn")))
    assert attnc("check", "-", stdin="attention x\nmask = j <= i\n").exit_code == 0


def test_fmt_rewrites_once(attnc: Attnc, tmp_path: Path) -> None:
    path = tmp_path / "a.attn"
    path.write_text("attention   a\nmask=j<=i   # past\n")
    path.chmod(0o640)
    assert attnc("fmt", path, "--check").exit_code == 1
    assert "+mask = j <= i  # past" in attnc("fmt", path, "--diff").stdout
    assert path.read_text().startswith("attention   a")
    assert attnc("fmt", path).exit_code == 0
    assert path.read_text() == "attention a\nmask = j <= i  # past\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert attnc("fmt", path, "--check").exit_code == 0
    assert attnc("fmt", path).stdout == ""


def test_fmt_as_a_filter(attnc: Attnc) -> None:
    assert attnc("fmt", "-", stdin="attention a\nmask=j<=i\n").stdout == "attention a\nmask = j <= i\n"


def test_the_shipped_specs_are_formatted(attnc: Attnc) -> None:
    import attnc.cli.new as new

    assert attnc("fmt", EXAMPLES, new.TEMPLATES, "--check").exit_code == 0


@pytest.mark.parametrize("template", template_names())
def test_new_writes_a_spec_that_checks(attnc: Attnc, tmp_path: Path, template: str) -> None:
    assert attnc("new", "mine", "--template", template).exit_code == 0
    text = (tmp_path / "mine.attn").read_text()
    assert "attention mine\n" in text
    assert "\n# " in text or text.startswith("# ")
    assert attnc("check", "mine.attn").exit_code == 0
    assert attnc("new", "mine").exit_code == 2
    assert (tmp_path / "mine.attn").read_text() == text


def test_list_names_everything(attnc: Attnc, tmp_path: Path) -> None:
    text = light(["list"], tmp_path)
    for word in ("alibi", "gallery/entmax15", "1 + 2", "softmax", "sigmoid", "where(condition, a, b)", "causal"):
        assert word in text
    assert "does not parse" not in text
    assert "alibi" not in attnc("list", "functions").stdout


def test_explain_a_code(attnc: Attnc) -> None:
    text = attnc("explain", "e001").stdout
    assert "E001" in text
    assert "Wrong:" in text
    assert "Right:" in text


def test_explain_a_spec(attnc: Attnc) -> None:
    assert len(attnc("explain", EXAMPLES / "alibi.attn").stdout.splitlines()) > 3


@pytest.mark.parametrize("backend", ["cpp", "tiled"])
def test_run_agrees_and_is_timed(attnc: Attnc, tmp_path: Path, backend: str) -> None:
    result = attnc("run", EXAMPLES / "alibi.attn", *SMALL, "--backend", backend, "--out", tmp_path / "sources")
    assert result.exit_code == 0, result.output
    for label in ("o ", "dq", "dk", "dv", "dslope"):
        assert any(line.startswith(label) and line.rstrip().endswith("agrees") for line in result.stdout.splitlines())
    assert "SDPA" in result.stdout
    assert "agrees with the float64 oracle" in result.stdout
    assert {p.suffix for p in (tmp_path / "sources").iterdir()} == {".cpp", ".py"}


def test_run_says_why_a_spec_has_no_peer(attnc: Attnc) -> None:
    result = attnc("run", EXAMPLES / "retention.attn", *SMALL)
    assert result.exit_code == 0, result.output
    assert "not timed beside SDPA: its weights are not a softmax" in result.stdout


def test_run_fits_a_grid(attnc: Attnc) -> None:
    grid = ("--const", "rows=4", "--const", "cols=6", "--const", "r=1", "--size", "H=2,D=8", "--rounds", "2")
    result = attnc("run", EXAMPLES / "neighborhood_2d.attn", *grid)
    assert result.exit_code == 0, result.output
    assert "N=24" in result.stdout


def test_run_fails_when_the_kernels_are_wrong(attnc: Attnc, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.testing import compare

    honest = compare.run_op

    def off(*given: object, **rest: object) -> compare.Results:
        results = honest(*given, **rest)  # type: ignore[arg-type]
        return compare.Results(results.outputs, {n: g * 1.001 if n == "k" else g for n, g in results.gradients.items()})

    monkeypatch.setattr(compare, "run_op", off)
    result = attnc("run", EXAMPLES / "causal.attn", *SMALL)
    assert result.exit_code == 1
    assert "disagrees with the oracle: dk" in result.stdout


def test_verify_summarises(attnc: Attnc) -> None:
    result = attnc(
        "verify", EXAMPLES / "causal.attn", "--lengths", "1,9", "--dtypes", "f32,bf16", "--backends", "tiled"
    )
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("causal")]
    assert len(rows) == 2
    assert all(row.rstrip().endswith("agrees") for row in rows)


@pytest.mark.parametrize("stage", ["cpp", "triton"])
def test_inspect_a_spec_without_kernels(attnc: Attnc, stage: str) -> None:
    result = attnc("inspect", EXAMPLES / "gallery" / "efficient_probing.attn", "--emit", stage)
    assert result.exit_code == 0
    assert "efficient_probing has no kernels" in result.stdout


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("tree", ["Definition name=alibi", "Section keyword=mask"]),
        ("ir", ["program alibi", "output o"]),
        ("backward", ["seed grad_o", "output grad_q"]),
        ("plan", ["row pass", "column pass"]),
        ("tile", ["kernel", "lane"]),
        ("triton", ["@triton.jit", "tl.dot"]),
        ("cpp", ['extern "C"']),
    ],
)
def test_inspect_shows_every_stage(attnc: Attnc, stage: str, words: list[str]) -> None:
    result = attnc("inspect", EXAMPLES / "alibi.attn", "--emit", stage)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.stdout


def test_plot_draws(attnc: Attnc, tmp_path: Path) -> None:
    result = attnc("plot", EXAMPLES / "alibi.attn", "--size", "N=12", "--out", "a.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bench_writes_json(attnc: Attnc, tmp_path: Path) -> None:
    given = ("--lengths", "16,32", "--size", "H=2,D=8", "--rounds", "2", "--json", "b.json", "--backend", "tiled")
    result = attnc("bench", EXAMPLES / "causal.attn", *given)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "b.json").read_text())
    assert [r["sizes"]["N"] for r in found["results"]] == [16, 32]
    assert set(found["results"][0]["seconds"]["forward"]) == {"attnc", "SDPA, is_causal"}


def test_a_file_of_several_definitions(attnc: Attnc, tmp_path: Path) -> None:
    (tmp_path / "two.attn").write_text("attention one\nmask = j <= i\n\nattention two\nmask = j >= i\n")
    assert "ok (one, two)" in attnc("check", "two.attn").stdout
    refused = attnc("run", "two.attn", *SMALL)
    assert refused.exit_code == 1
    assert "E311" in refused.stderr
    chosen = attnc("run", "two.attn", "--name", "two", "--backend", "dense", *SMALL)
    assert chosen.exit_code == 0, chosen.output
    assert chosen.stdout.startswith("two ")
    swept = attnc("verify", "two.attn", "--backends", "dense", "--lengths", "3").stdout
    assert [line.split()[0] for line in swept.splitlines()[1:]] == ["one", "two"]


@pytest.mark.parametrize("command", ["explain", "inspect", "run", "verify", "bench"])
def test_rewrites_to_disable_are_listed_with_what_they_do(attnc: Attnc, command: str) -> None:
    text = " ".join(attnc(command, "--help").stdout.replace("│", " ").split())
    assert "--disable" in text
    for name, what in REWRITES.items():
        assert f"{name}: {what}." in text


def test_disabled_rewrites_reach_every_command(attnc: Attnc, tmp_path: Path) -> None:
    path = tmp_path / "a.attn"
    path.write_text("attention a\nmask = j <= i\n")
    off = ("--disable", "online", "--disable", "bounds")
    for name in ("online", "bounds"):
        assert f"* without {name}" in attnc("explain", path, *off).stdout
        assert f"* with {name}" in attnc("explain", path).stdout
    assert "row_row_max" in attnc("inspect", path, "--emit", "plan", *off).stdout
    assert "row_row_max" not in attnc("inspect", path, "--emit", "plan").stdout
    assert attnc("verify", path, "--backends", "tiled", "--lengths", "5", *off).exit_code == 0
    assert "agrees" in attnc("run", path, "--backend", "tiled", *SMALL, *off).stdout
    assert attnc("bench", path, "--backend", "tiled", "--lengths", "32", "--rounds", "2", *off).exit_code == 0


@pytest.mark.parametrize("command", ["explain", "inspect", "run", "verify", "bench"])
def test_an_unknown_rewrite_is_reported(attnc: Attnc, command: str) -> None:
    result = attnc(command, EXAMPLES / "alibi.attn", "--disable", "onlin")
    assert result.exit_code == 1
    assert "E320" in result.stderr and "did you mean `online`" in result.stderr


def test_inspect_and_explain_show_the_form_chosen_for_a_dtype(attnc: Attnc) -> None:
    for dtype, form in (("f32", "registers"), ("bf16", "factors")):
        plan = attnc("inspect", EXAMPLES / "spatial.attn", "--emit", "plan", "--dtype", dtype).stdout
        assert ("output bias_i: real[B, H, M, 5]" in plan) == (form == "factors")
        assert f"on a cpu {form} in " in plan
    assert "* factors: " in attnc("explain", EXAMPLES / "spatial.attn", "--dtype", "bf16").stdout


def test_inspect_shows_the_factors_of_a_bias(attnc: Attnc) -> None:
    text = attnc("inspect", EXAMPLES / "alibi.attn", "--emit", "plan", "--bias", "factors").stdout
    assert "output bias_i: real[M, 2]" in text
    assert "sum[r](bias_i[i, r] * bias_j[j, r])" in text
    assert "for each block of i" in text
    assert "grad_bias" not in text  # positions have no gradient
    result = attnc("inspect", EXAMPLES / "relative_table.attn", "--emit", "plan", "--bias", "factors")
    assert result.exit_code != 0
    assert "E331" in result.stderr
