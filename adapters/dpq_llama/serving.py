"""The OpenAI-compatible server of transformers, on a model that dpq has compressed."""

from __future__ import annotations

import functools
import importlib.util
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpq_core.errors import AdapterError, SpecError
from dpq_core.run import Run
from dpq_llama.options import check_engine
from dpq_llama.source.checkpoint import locate


def serve(source: str, host: str, port: int, run: Run, engine: str = "auto") -> None:
    """Serve a model until the process is interrupted; ``engine`` as of ``SampleOptions``.

    Raises:
        AdapterError: the packages of the server are not installed.
        SpecError: the address cannot be used, or the folder has a name that the server splits.
        SourceError: there is no such model.
    """
    with started(source, host, port, run, engine) as server:
        run.progress(f"serving {source} on http://{host}:{port}/v1", 0, 0)
        server._thread.join()


@contextmanager
def started(source: str, host: str, port: int, run: Run, engine: str = "auto") -> Iterator[Any]:
    """A server that answers in the background, and stops at the end of the block."""
    absent = [n for n in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(n) is None]
    if absent:
        raise AdapterError(f"serving needs {', '.join(absent)}: pip install 'dpq[serve]'")
    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager

    check_engine(engine)
    folder = locate(source)
    name = source if Path(source).exists() else str(folder)
    if "@" in name:
        raise SpecError(f"{name}: the server takes what follows an @ for a revision; rename it")
    _check_address(host, port)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dpq"}
    managers: Any = model_manager.ModelManager  # lists the hub's cache, whatever it serves
    listed = managers.__dict__["get_gen_models"]
    managers.get_gen_models = staticmethod(lambda *_: [model])
    loads = managers._load_model
    managers._load_model = accelerated(loads, engine, run)
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
        managers._load_model = loads


def accelerated(load: Callable[..., Any], engine: str, run: Run) -> Callable[..., Any]:
    """The server's loading of models, after which they generate by compiled code where they can."""

    @functools.wraps(load)
    def loaded(*arguments: Any, **options: Any) -> Any:
        from dpq_llama.compiled.attached import attach
        from dpq_llama.compiled.decoder import why_not

        model = load(*arguments, **options)
        reason = why_not(model) if engine != "transformers" else "as asked for"
        if reason and engine != "compiled":
            run.progress(f"transformers generates: {reason}", 0, 0)
        else:
            attach(model)
        return model

    return loaded


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
