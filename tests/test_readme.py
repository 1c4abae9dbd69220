"""What the README and the documents show is true: Python blocks run, `.attn` blocks compile, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from attnc import driver
from attnc.diagnostics.source import Source

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language and its text."""

    place: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return [b for b in found if b.language == language]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: b.place)
def test_python_runs(block: Block) -> None:
    """Each block stands alone, as a reader would paste it. In a process of its own: blocks may print or set options."""
    done = subprocess.run([sys.executable, "-c", block.text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("attn"), ids=lambda b: b.place)
def test_attn_compiles(block: Block) -> None:
    """A block without a header is the body of a definition."""
    text = block.text if re.match(r"\s*attention\b", block.text) else f"attention fragment\n{block.text}"
    source = Source(block.place, text)
    driver.lower(driver.definition(source), source, {})


def test_the_readme_opens_with_an_example_file() -> None:
    first = next(b for b in blocks("attn") if b.place.startswith("README.md"))
    assert first.text == (ROOT / "examples" / "alibi.attn").read_text()


def test_the_readme_names_every_example_and_no_other() -> None:
    table = (ROOT / "README.md").read_text().split("## What it can say")[1].split("The language is described")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert named == {p.stem for p in (ROOT / "examples").glob("*.attn")}


def test_the_two_commands_come_first() -> None:
    commands = blocks("sh")
    assert [c.place.split(":")[0] for c in commands[:2]] == ["README.md", "README.md"]
    assert "attnc run examples/alibi.attn" in commands[0].text
    assert "pytest" in commands[1].text
    assert all(c.text.count("\n") == 1 for c in commands[:2])


def test_every_command_named_exists() -> None:
    from attnc.cli.app import COMMANDS

    known = {name for name, *_ in COMMANDS}
    for page in PAGES:
        for name in re.findall(r"`attnc (\w+)", page.read_text()):
            assert name in known, f"{page.name}: attnc {name}"


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    script = tmp_path / "pipeline.py"
    script.write_text((ROOT / "docs" / "pipeline.py").read_text())
    subprocess.run([sys.executable, str(script)], check=True)
    assert (tmp_path / "pipeline.svg").read_text() == (ROOT / "docs" / "pipeline.svg").read_text()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
