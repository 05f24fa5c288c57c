"""The Inception network: structure, resizing, features, and where its weights come from."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from dpq_core.errors import SourceError
from dpq_diffusion.evaluation import inception_weights as weights
from dpq_diffusion.evaluation.extractor import ADM_EXTRACTOR
from dpq_diffusion.evaluation.inception import ConvNorm, InceptionV3, resize
from dpq_diffusion.evaluation.inception_weights import InceptionExtractor, load_inception


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InceptionV3().eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def extractor(network):
    return InceptionExtractor(network, name="random-inception", device="cpu")


def test_parameter_count_is_that_of_the_published_file(network):
    """Torchvision's Inception-v3 without its auxiliary head has 23,834,568 parameters; eight
    more classes add 8 * 2049. With the statistics of 94 batch norms, in float32, that is the
    published file but for 87 kB of pickle."""
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 23_834_568 + 8 * 2049
    norms = [m.bn for m in network.modules() if isinstance(m, ConvNorm)]
    assert len(norms) == 94
    statistics = sum(2 * norm.num_features for norm in norms)
    assert 0 < weights.BYTES - 4 * (parameters + statistics) < 90_000


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("Conv2d_4a_3x3.bn.running_var", (192,)),
        ("Mixed_5b.branch5x5_2.conv.weight", (64, 48, 5, 5)),
        ("Mixed_5d.branch_pool.conv.weight", (64, 288, 1, 1)),
        ("Mixed_6a.branch3x3dbl_3.conv.weight", (96, 96, 3, 3)),
        ("Mixed_6b.branch7x7_2.conv.weight", (128, 128, 1, 7)),
        ("Mixed_6e.branch7x7dbl_5.conv.weight", (192, 192, 1, 7)),
        ("Mixed_7a.branch7x7x3_4.conv.weight", (192, 192, 3, 3)),
        ("Mixed_7b.branch3x3_2b.conv.weight", (384, 384, 3, 1)),
        ("Mixed_7c.branch3x3dbl_1.conv.weight", (448, 2048, 1, 1)),
        ("Mixed_7c.branch3x3dbl_3a.bn.bias", (384,)),
        ("fc.weight", (1008, 2048)),
        ("fc.bias", (1008,)),
    ],
)
def test_names_and_shapes(network, name, shape):
    assert tuple(network.state_dict()[name].shape) == shape


def test_the_grid_of_every_block(network, images):
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])})
        )
        for name, module in network.named_children()
    ]
    with torch.no_grad():
        network(images[:1])
    for hook in hooks:
        hook.remove()
    assert seen == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6b": (768, 17, 17),
        "Mixed_6c": (768, 17, 17),
        "Mixed_6d": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7b": (2048, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }


@pytest.mark.slow
def test_features(network, extractor, images):
    """Spatial features are branch1x1 of Mixed_6d, seven channels, channels last."""
    branch = []
    hook = network["Mixed_6d"]["branch1x1"].register_forward_hook(
        lambda _, __, out: branch.append(out)
    )
    found = extractor.features(images)
    hook.remove()
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    expected = branch[0].permute(0, 2, 3, 1)[..., :7].reshape(2, -1)
    assert torch.equal(found["spatial"], expected)
    assert torch.equal(found["logits"], functional.linear(found["pool"], network.fc.weight))
    assert found["pool"].isfinite().all()
    assert not any(value.requires_grad for value in found.values())
    again = extractor.features(images)
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_pools_of_the_blocks(network):
    """Averages skip the padding in 35, 17 and the first 8 grid; the last block takes a maximum."""
    ones = torch.ones(1, 2048, 3, 3)
    seen = {}
    for name in ("Mixed_7b", "Mixed_7c"):
        block = network[name]
        x = ones[:, :1280] if name == "Mixed_7b" else ones.clone()
        x[..., 0, 0] = 3
        hook = block["branch_pool"].register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0][0, 0]})
        )
        with torch.no_grad():
            block(x.clone())
        hook.remove()
    corner = torch.tensor([[6 / 4, 8 / 6, 1], [8 / 6, 11 / 9, 1], [1, 1, 1]])
    torch.testing.assert_close(seen["Mixed_7b"], corner)
    assert seen["Mixed_7c"].tolist() == [[3, 3, 1], [3, 3, 1], [1, 1, 1]]


@pytest.mark.parametrize("shape", [(32, 40), (1, 5), (300, 64), (10, 10), (7, 13)])
@pytest.mark.parametrize("size", [10, 29])
def test_resize_equals_the_definition_pixel_by_pixel(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    expected = np.zeros((size, size), np.float64)
    for i in range(size):
        for j in range(size):
            y, x = i * shape[0] / size, j * shape[1] / size
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, shape[0] - 1), min(x0 + 1, shape[1] - 1)
            dy, dx = y - y0, x - x0
            top = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            bottom = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            expected[i, j] = top * (1 - dy) + bottom * dy
    found = resize(torch.from_numpy(image)[None, None], size)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


def test_resize_keeps_an_image_of_the_right_size():
    image = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(image), image)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory, network):
    """A file like the published one, with random weights."""
    path = tmp_path_factory.mktemp("downloads") / weights.FILE
    torch.save(network.state_dict(), path)  # noqa: TID251 - the published file is a pickle
    return path


def take_for_published(monkeypatch, content):
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(weights, "BYTES", len(content))


@pytest.mark.slow
def test_a_given_file_is_converted_once(pickled, tmp_path, monkeypatch, network, images):
    take_for_published(monkeypatch, pickled.read_bytes())
    loaded = load_inception(str(pickled), cache=tmp_path)
    assert loaded.name == ADM_EXTRACTOR
    direct = InceptionExtractor(network, name="x", device="cpu").features(images)
    found = loaded.features(images)
    assert all(torch.equal(found[key], direct[key]) for key in found)
    (converted,) = tmp_path.iterdir()
    assert converted.name == "pt_inception-2015-12-05-6726825d.safetensors"
    assert not any(name.endswith("num_batches_tracked") for name in load_file(converted))
    before = converted.stat().st_mtime_ns
    for again in ("", str(converted)):
        assert load_inception(again, cache=tmp_path).name == ADM_EXTRACTOR
    assert converted.stat().st_mtime_ns == before


@pytest.mark.parametrize("converted", [False, True], ids=["first", "after-another"])
def test_another_file_is_refused_by_its_hash(tmp_path, converted):
    """Also where the right file has been converted before: the given one is what counts."""
    source = tmp_path / "mine.pth"
    source.write_bytes(b"other weights")
    if converted:
        (tmp_path / weights.FILE).with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"sha256 .* is not that of pt_inception.*get it from"):
        load_inception(str(source), cache=tmp_path)


def test_no_weights_says_how_to_get_them(tmp_path):
    with pytest.raises(SourceError, match=r"FID, sFID and IS need Inception weights; give the"):
        load_inception(cache=tmp_path)
    with pytest.raises(SourceError, match=r"absent\.pth: no such file.*or the word 'download'"):
        load_inception(str(tmp_path / "absent.pth"), cache=tmp_path)


@pytest.mark.slow
def test_the_download_is_checked_converted_and_reported(pickled, tmp_path, monkeypatch):
    content = pickled.read_bytes()
    take_for_published(monkeypatch, content)
    asked, seen = [], []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(weights.urllib.request, "urlopen", answer)
    found = load_inception(
        "download", cache=tmp_path, progress=lambda what, done, total: seen.append((done, total))
    )
    assert found.name == ADM_EXTRACTOR
    assert seen[-1] == (len(content), len(content))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".pth", ".safetensors"]
    load_inception("download", cache=tmp_path)
    assert asked == [weights.URL]


@pytest.mark.parametrize("kind", ["hash", "long", "network"])
def test_a_bad_download_leaves_nothing(tmp_path, monkeypatch, kind):
    take_for_published(monkeypatch, b"the published weights")

    def answer(url, timeout):
        if kind == "network":
            raise urllib.error.URLError("name resolution failed")
        return io.BytesIO(b"the published weights, more" if kind == "long" else b"others")

    monkeypatch.setattr(weights.urllib.request, "urlopen", answer)
    message = "download failed .*name resolution" if kind == "network" else "nothing was kept"
    with pytest.raises(SourceError, match=message):
        load_inception("download", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


class Attack:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.bias": torch.ones(1008)}, "is missing, unknown or of another shape"),
        ([1, 2], "not a plain state dict of tensors"),
        (None, "not a plain state dict"),
    ],
    ids=["names", "list", "pickle"],
)
def test_a_pickle_with_the_right_hash_and_wrong_content(
    tmp_path, monkeypatch, capsys, state, message
):
    source = tmp_path / weights.FILE
    if state is None:
        source.write_bytes(pickle.dumps(Attack(), protocol=2))
    else:
        torch.save(state, source)  # noqa: TID251 - the published file is a pickle
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    with pytest.raises(SourceError, match=message) as caught:
        load_inception(str(source), cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_foreign_or_damaged_conversions_are_refused(tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file({"fc.bias": torch.ones(2)}, path)
    with pytest.raises(SourceError, match="not converted from pt_inception"):
        load_inception(str(path), cache=tmp_path)
    save_file({"fc.bias": torch.ones(2)}, path, {"source_sha256": weights.SHA256})
    with pytest.raises(SourceError, match="not the Inception weights"):
        load_inception(str(path), cache=tmp_path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(SourceError, match="not readable"):
        load_inception(str(path), cache=tmp_path)
