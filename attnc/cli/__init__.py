"""The command line, ``attnc``. Modules here import what they need inside their functions, so that help appears at
once."""

from __future__ import annotations


def main() -> None:
    """Run ``attnc`` with the process's arguments."""
    from attnc.cli.app import app

    app(prog_name="attnc")


__all__ = ["main"]
