"""The OpenAI-compatible server of transformers, on a model that dpq has compressed."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpq_core.errors import AdapterError, SpecError
from dpq_core.run import Run
from dpq_llama.source.checkpoint import locate


def serve(source: str, host: str, port: int, run: Run) -> None:
    """Serve a model until the process is interrupted.

    Raises:
        AdapterError: the packages of the server are not installed.
        SpecError: the address cannot be used, or the folder has a name that the server splits.
        SourceError: there is no such model.
    """
    with started(source, host, port, run) as server:
        run.progress(f"serving {source} on http://{host}:{port}/v1", 0, 0)
        server._thread.join()


@contextmanager
def started(source: str, host: str, port: int, run: Run) -> Iterator[Any]:
    """A server that answers in the background, and stops at the end of the block."""
    absent = [n for n in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(n) is None]
    if absent:
        raise AdapterError(f"serving needs {', '.join(absent)}: pip install 'dpq[serve]'")
    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager

    folder = locate(source)
    name = source if Path(source).exists() else str(folder)
    if "@" in name:
        raise SpecError(f"{name}: the server takes what follows an @ for a revision; rename it")
    _check_address(host, port)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dpq"}
    managers: Any = model_manager.ModelManager  # lists the hub's cache, whatever it serves
    listed = managers.__dict__["get_gen_models"]
    managers.get_gen_models = staticmethod(lambda *_: [model])
    try:
        server: Any = Serve(
            force_model=name,
            device=run.device,
            host=host,
            port=port,
            default_seed=run.seed,
            non_blocking=True,
        )
        try:
            while not server.server.started and server._thread.is_alive():
                time.sleep(0.02)
            yield server
        finally:
            server.kill_server()
    finally:
        managers.get_gen_models = listed


def _check_address(host: str, port: int) -> None:
    """Refuse an address that is taken or not this machine's, before the model is loaded.

    Raises:
        SpecError: it cannot be listened at.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"cannot listen at {host}:{port} ({reason})", option="port") from None
