"""Policy: which tensors get more bits, and which hidden units may be reordered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer

_MLPS = (
    ("down_proj", ("gate_proj", "up_proj")),  # LLaMA and most others, dense and per expert
    ("down_proj", ("gate_up_proj",)),  # Phi-3: gates and values in one layer
    ("down_proj", ("up_proj",)),  # MPT
    ("w2", ("w1", "w3")),  # Mixtral, per expert
    ("dense_4h_to_h", ("dense_h_to_4h",)),  # GPT-NeoX, Falcon
    ("fc2", ("fc1",)),  # Phi, OPT
    ("c_proj", ("c_fc",)),  # GPT-2
)
"""Names of the layers of an MLP: the consumer of its inner units, and their producers.

Between them is nothing but an activation and a product, each of one unit alone.
"""


def policy(spec: QuantSpec, embeddings: Iterable[str]) -> tuple[Override, ...]:
    """Rules that give the embedding and the head at least 4 bits per weight.

    They are a small part of a large model, and a lookup has no other weights to average out its
    error (measured on builtin:tiny-llama; docs/llama.md).

    Args:
        spec: the spec of all other tensors.
        embeddings: names of the embedding and of the head.
    """
    if spec.bits >= 4:
        return ()
    return tuple(Override(name, {"bits": 4}) for name in embeddings)


def hidden_axes(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HiddenAxis]:
    """The inner units of each MLP, such as ``down(silu(gate(x)) * up(x))``, whose order is free.

    An MLP with any further tensor (a norm of the inner units, say) is left out. So are the columns
    of an attention's output: they could only change places within their heads, and a permutation
    over all of them, stored, lowers its error by more.

    Args:
        shapes: shapes of the checkpoint's tensors by name.
    """
    homes, larger = _modules(shapes)
    for home, tensors in homes.items():
        if home in larger:
            continue
        for consumer, producers in _MLPS:
            made = [f"{layer}.{kind}" for layer in producers for kind in ("weight", "bias")]
            weights = {f"{layer}.weight" for layer in (consumer, *producers)}
            if not weights <= tensors <= {*made, f"{consumer}.weight", f"{consumer}.bias"}:
                continue
            units = max(1, shapes[f"{home}{consumer}.weight"][1])
            yield HiddenAxis(
                consumer=f"{home}{consumer}.weight",
                producers=tuple(
                    Producer(name, blocks=max(1, shapes[name][0] // units))
                    for name in (f"{home}{tensor}" for tensor in made if tensor in tensors)
                ),
            )


def _modules(names: Iterable[str]) -> tuple[dict[str, set[str]], set[str]]:
    """Prefixes of modules with their layers' weights and biases, and of modules that hold more."""
    homes: dict[str, set[str]] = {}
    larger: set[str] = set()
    for name in names:
        *parents, layer, leaf = ("", *name.split("."))
        if leaf in ("weight", "bias") and parents:
            homes.setdefault(_prefix(parents), set()).add(f"{layer}.{leaf}")
        else:
            parents.append(layer)
            larger.add(_prefix(parents))
        larger.update(_prefix(parents[:depth]) for depth in range(1, len(parents)))
    return homes, larger


def _prefix(parents: Sequence[str]) -> str:
    """The prefix of the tensors of a module, given the names on the way to it after the root."""
    return "".join(f"{name}." for name in parents[1:])
