"""Stored arguments come back as they were, from memory and from disk."""

from __future__ import annotations

import pytest
import torch

from dpq_core.data.sequential import activations
from dpq_core.data.sequential.activations import Activations, Unstorable
from dpq_core.errors import ArtifactError

BASE = torch.arange(24.0).view(4, 6)
MANY = [torch.full((2,), float(i)) for i in range(12)]
ARGUMENTS = {
    "plain": ((1, None, "text", 2.5, torch.float16), {"flag": True}),
    "views of one storage": ((BASE, BASE[1:], BASE.T, BASE[:, :1].expand(4, 9)), {}),
    "many": ((MANY,), {"last": {"deep": (MANY[3], [MANY[11]])}}),
    "dtypes": (
        (torch.tensor(3), torch.zeros(0), torch.tensor([True]), torch.ones(2).bfloat16()),
        {},
    ),
    "complex": ((torch.ones(2, dtype=torch.complex64),), {}),
}


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, tuple | list):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert_equal(list(a.values()), list(b.values()))
    else:
        assert a == b


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("budget", [0, 10**6])
def test_arguments_come_back_as_they_were(tmp_path, name, budget):
    store = Activations(tmp_path / "scratch", budget)
    store.put(7, ARGUMENTS[name])
    assert_equal(store.get(7), ARGUMENTS[name])


def test_one_tensor_in_two_places_is_one_tensor_again(tmp_path):
    for budget in (0, 10**6):
        store = Activations(tmp_path, budget)
        store.put(0, ((BASE,), {"again": BASE}))
        args, kwargs = store.get(0)
        assert args[0] is kwargs["again"]
        assert store.nbytes == (BASE.nbytes if budget else 0)


def test_what_cannot_be_written_stays_in_memory_whole(tmp_path):
    store = Activations(tmp_path, 0)
    store.put(0, (BASE, torch.ones(2, dtype=torch.complex64)))
    assert store.nbytes == BASE.nbytes + 16
    assert list(tmp_path.iterdir()) == []


def test_stored_arguments_carry_no_gradients(tmp_path):
    store = Activations(tmp_path, 10**6)
    store.put(0, (BASE.clone().requires_grad_(True) * 2,))
    assert not store.get(0)[0].requires_grad


def test_arguments_that_are_refused_leave_the_batch_as_it_was(tmp_path):
    store = Activations(tmp_path, 10**6)
    store.put(0, (BASE,))
    with pytest.raises(Unstorable):
        store.put(0, (object(),))
    assert_equal(store.get(0), (BASE,))


def test_replaced_and_forgotten_arguments_free_memory_and_disk(tmp_path):
    store = Activations(tmp_path, 100)
    store.put(0, (torch.zeros(20),))  # 80 bytes
    store.put(1, (torch.zeros(20),))
    assert store.nbytes == 80
    assert len(list(tmp_path.iterdir())) == 1
    store.put(0, (torch.zeros(25),))
    assert store.nbytes == 100
    store.put(1, (torch.ones(3),))
    assert_equal(store.get(1), (torch.ones(3),))
    store.clear()
    assert store.nbytes == 0
    assert list(tmp_path.iterdir()) == []


def test_what_may_have_a_state_is_not_stored(tmp_path):
    class Cache(dict):
        pass

    for value in (Cache(), object(), [torch.Generator()]):
        with pytest.raises(Unstorable):
            Activations(tmp_path, 0).put(0, (value,))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise activations.SafetensorError("No space left on device")

    monkeypatch.setattr(activations, "save_file", full)
    with pytest.raises(ArtifactError, match=r"batch-00000.*No space left on device") as caught:
        Activations(tmp_path, 0).put(0, (BASE,))
    assert "\n" not in str(caught.value)
