"""``python -m dpq_cli``: the ``dpq`` command for launchers that start modules."""

from __future__ import annotations

from dpq_cli.app import app

if __name__ == "__main__":
    app(prog_name="dpq")
