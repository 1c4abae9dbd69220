"""The benchmark scripts walk their whole path on a CPU, at tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / script, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.sweep
def test_gpu_dry_run(tmp_path: Path) -> None:
    out = tmp_path / "dry.json"
    done = run("gpu.py", "--dry-run", "--specs", "alibi,loaded_bias", "--stages", "check,race,calls", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads(out.read_text())["entries"]
    checks = [e for e in entries if e["stage"] == "check"]
    assert [e["name"] for e in checks] == ["alibi bf16", "alibi f16"]
    assert all(e["agrees"] and any(r["kind"] == "gradient" for r in e["rows"]) for e in checks)
    races = {e["name"]: e for e in entries if e["stage"] == "race"}
    alibi = races["alibi B1 H2 N32 D16"]
    assert {"attnc", "flash", "flex", "eager"} == set(alibi["timings"]["forward"])
    assert any("cuDNN failed" in n for n in alibi["notes"])
    assert alibi["share"] == 33 / 64
    assert alibi["accuracy"]["error"] <= alibi["accuracy"]["allowed"]
    by_rank = races["loaded_bias rank=auto rtol=0.01 B1 H2 N32 D16"]
    assert any("factors of rank 12" in n for n in by_rank["notes"])
    assert by_rank["timings"]["both"]["attnc"]["median_ms"] > 0
    assert next(e for e in entries if e["stage"] == "calls")["microseconds"]["attnc both"] > 0
    assert "alibi" in out.with_suffix(".txt").read_text()
    assert out.with_suffix(".png").stat().st_size > 1000


def test_gpu_stops_at_its_deadline(tmp_path: Path) -> None:
    """Before its processes have begun anything."""
    out = tmp_path / "dry.json"
    done = run("gpu.py", "--dry-run", "--specs", "causal", "--stages", "check", "--deadline", "0", "--out", out)
    assert done.returncode == 1
    entries = json.loads(out.read_text())["entries"]
    assert len(entries) == 2
    assert all("time was up" in e["problem"] for e in entries)


def test_masks(tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    lengths = ("--length", "4096", "--peer-length", "256", "--window-length", "512", "--rounds", "1")
    done = run("masks.py", "--masks", "documents", *lengths, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    planned = found["planning"]["documents"]
    assert planned["forward"]["runs"] >= 64
    assert planned["create_block_mask"]["seconds"] > 0
    assert found["window"]["both"]["ratio"] > 0


def test_tables(tmp_path: Path) -> None:
    out = tmp_path / "tables.json"
    done = run("tables.py", "--specs", "music", "--length", "64", "--seconds", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [r["kind"] for r in rows] == ["forward", "both"]
    assert all(t > 0 for r in rows for t in r["milliseconds"].values())
    assert len(done.stdout.splitlines()) == 3


def test_cpu(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    tiny = ("--lengths", "32", "--channels", "16", "--dtypes", "f32", "--shapes", "2", "--no-flex")
    short = ("--rounds", "1", "--least", "0.001", "--budget", "0.01")
    done = run("cpu.py", "--only", "plain,parts,shapes", "--specs", "causal", *tiny, *short, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    causal, trained = found["rows"]
    assert trained["both"]
    assert set(causal["ratios"]) == {"SDPA", "eager"}
    assert 0 < causal["of_peak"] < 1
    assert abs(causal["gflops"] * causal["seconds"]["attnc"] * 1e9 / (4 * 8 * 16 * 32 * 33 / 2) - 1) < 1e-6
    assert all(0 <= r["error"] <= 1 for r in found["rows"])
    assert found["shapes"]["error"] < 1e-5
    assert found["shapes"]["compiled"] == 0
    shares = found["parts"]["f32"]
    assert all(0 < shares[part] < 1 for part in ("products", "exponentials", "sums", "softmax"))
    assert found["machine"]["peaks"]["f32"]["gflops"] > 1


@pytest.mark.sweep
def test_low_rank_biases(tmp_path: Path) -> None:
    out = tmp_path / "lowrank.json"
    arguments = ("--cases", "spatial,table", "--dtypes", "f32", "--lengths", "64", "--rounds", "1", "--points", "100")
    done = run("lowrank.py", "--trained", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    spatial, table = found["rows"]
    assert spatial["chosen"] == "registers"
    assert {"auto", "factors", "SDPA", "SDPA, trained"} == set(spatial["both_ratio"])
    assert all(error < 1e-4 for error in spatial["errors"].values())
    assert table["forward_ratio"]["loaded"] > 0
    assert [row["way"] for row in found["memory"]] == ["auto", "factors", "SDPA"]
    assert found["points"]["peak"] > 0


@pytest.mark.sweep
def test_linear(tmp_path: Path) -> None:
    out = tmp_path / "linear.json"
    lengths = ("--lengths", "64,128", "--quadratic", "128", "--seconds", "0")
    done = run("linear.py", "--specs", "aaren", *lengths, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["kind"] for row in found["times"]] == ["forward", "both"]
    assert all(row["states"]["64"] > 0 and row["ratios"]["128"] > 0 for row in found["times"])
    (memory,) = found["memory"]
    assert memory["peak_mb"]["128"] >= memory["peak_mb"]["64"] > 0
