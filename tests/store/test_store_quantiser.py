"""Product quantisation: codes are the nearest centroids, errors are small, payloads know their codebooks."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
import torch
from store_world import Where
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.store import Store, quantiser
from agentmem.store.codebooks import load_codebooks, save_codebooks
from agentmem.store.codec import CODECS, FORMAT, PQ, pack, unpack
from agentmem.store.quantiser import CENTROIDS, Codebooks, Quantiser, train_codebooks


def vectors(n: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated dims, as keys have them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return (torch.randn(n, dim, generator=generator) * torch.linspace(2.0, 0.1, dim)) @ mixing


def some_quantiser(dim: int, m: int, seed: int = 0) -> Quantiser:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return Quantiser(rotation, torch.randn(m, CENTROIDS, dim // m, generator=generator))


@pytest.fixture(scope="module")
def books() -> Codebooks:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiser, "LEAST", 1500)
        patch.setattr(quantiser, "ROUNDS", 2)
        return train_codebooks({n: (vectors(1500, 16, n), vectors(1500, 8, n + 9)) for n in (1, 3)})


def test_every_part_of_a_vector_gets_its_nearest_centroid() -> None:
    one = some_quantiser(12, 3)
    x = torch.randn(5, 2, 12, generator=torch.Generator().manual_seed(1))
    codes = one.encode(x)
    assert codes.dtype == torch.uint8
    assert codes.shape == (5, 2, 3)
    turned = x @ one.rotation.T
    for row in np.ndindex(5, 2):
        for part in range(3):
            piece = turned[row][part * 4 : part * 4 + 4]
            assert int(codes[row][part]) == int((one.centroids[part] - piece).square().sum(-1).argmin())
    back = torch.cat([one.centroids[i, codes[0, 0, i].long()] for i in range(3)]) @ one.rotation
    torch.testing.assert_close(one.decode(codes)[0, 0], back)


def test_the_rotation_makes_errors_smaller_than_faiss_has_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiser, "LEAST", 2000)
    monkeypatch.setattr(quantiser, "ROUNDS", 4)
    x = vectors(2000, 16)
    ours, _ = train_codebooks({0: (x, x)}).layers[0]
    assert ours.centroids.shape == (4, 256, 4)
    torch.testing.assert_close(ours.rotation @ ours.rotation.T, torch.eye(16), atol=1e-4, rtol=0)
    plain = faiss.ProductQuantizer(16, 4, 8)
    plain.train(x.numpy())
    theirs = torch.from_numpy(plain.decode(plain.compute_codes(x.numpy())))
    errors = [float((got - x).square().mean() / x.square().mean()) for got in (ours.decode(ours.encode(x)), theirs)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("dim", "m"), [(64, 16), (80, 20), (10, 2), (6, 1), (3, 1)])
def test_one_byte_stands_for_four_dims_where_they_can_be_shared_out(
    dim: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantiser, "LEAST", 300)
    monkeypatch.setattr(quantiser, "ROUNDS", 1)
    x = vectors(300, dim)
    assert train_codebooks({0: (x, x)}).layers[0][0].encode(x).shape == (300, m)


def test_codebooks_come_back_from_their_bytes(books: Codebooks) -> None:
    again = Codebooks.from_bytes(books.to_bytes())
    assert again.digest == books.digest
    assert sorted(again.layers) == [1, 3]
    for data in (b"", b"nothing of the kind", books.to_bytes()[:-1]):
        with pytest.raises(PayloadDamaged, match="no codebooks"):
            Codebooks.from_bytes(data)


def test_a_payload_is_small_and_comes_back_with_layers_and_places(books: Codebooks) -> None:
    keys = [vectors(2 * 8, 16, n).view(2, 8, 16).bfloat16() for n in (1, 3)]
    values = [vectors(2 * 8, 8, n + 9).view(2, 8, 8).bfloat16() for n in (1, 3)]
    offsets = [torch.arange(8).expand(2, 8) * 3] * 2
    data = pack(keys, values, PQ, layers=(1, 3), offsets=offsets, codebooks=books)
    assert len(data) < 2 * 2 * 8 * (4 + 2) + 2 * 2 * 8 + 500
    got = unpack(data, books)
    assert got.layers == (1, 3)
    assert got.offsets is not None
    assert all(map(torch.equal, got.offsets, offsets))
    for given, back in zip((*keys, *values), (*got.keys, *got.values), strict=True):
        assert back.dtype == torch.bfloat16
        assert float((back.float() - given.float()).square().mean() / given.float().square().mean()) < 0.3
    assert pack(keys, values, PQ, layers=(1, 3), offsets=offsets, codebooks=books) == data


def test_other_codebooks_or_none_are_damage_and_never_wrong_numbers(books: Codebooks) -> None:
    key = vectors(16, 16).view(2, 8, 16)
    value = vectors(16, 8).view(2, 8, 8)
    data = pack([key], [value], PQ, layers=(1,), codebooks=books)
    other = Codebooks({n: (some_quantiser(16, 4), some_quantiser(8, 2)) for n in (1, 3)})
    for wrong in (None, other):
        with pytest.raises(PayloadDamaged, match="codebooks that it was packed with are not here"):
            unpack(data, wrong)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"][FORMAT]) | {"numbers": [2]}
    header["__metadata__"][FORMAT] = json.dumps(about)
    text = json.dumps(header).encode()
    with pytest.raises(PayloadDamaged):
        unpack(len(text).to_bytes(8, "little") + text + data[8 + length :], books)


@pytest.mark.parametrize(
    ("layers", "dim", "message"),
    [
        ((0,), 16, "no codebooks for the KV of layers"),
        ((), 16, "no codebooks"),
        ((1,), 12, "other dims than its codebooks"),
    ],
)
def test_what_has_no_codebook_is_refused(books: Codebooks, layers: tuple[int, ...], dim: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        pack([torch.ones(1, 2, dim)], [torch.ones(1, 2, 8)], PQ, layers=layers, codebooks=books)
    with pytest.raises(InvalidInput, match="no codebooks"):
        pack([torch.ones(1, 2, 16)], [torch.ones(1, 2, 8)], PQ, layers=(1,))


def test_numbers_that_are_none_are_refused(books: Codebooks) -> None:
    bad = torch.full((1, 2, 16), float("nan"))
    with pytest.raises(InvalidInput, match="NaN"):
        pack([bad], [torch.ones(1, 2, 8)], PQ, layers=(1,), codebooks=books)
    with pytest.raises(InvalidInput, match="NaN"):
        train_codebooks({0: (torch.full((quantiser.LEAST, 8), float("inf")), torch.zeros(quantiser.LEAST, 8))})


def test_other_codecs_do_not_look_at_codebooks(books: Codebooks) -> None:
    assert PQ not in CODECS
    key = torch.ones(1, 2, 16)
    assert pack([key], [key], "int8", codebooks=books) == pack([key], [key], "int8")


def test_the_store_keeps_one_set_per_fingerprint(where: Where, books: Codebooks) -> None:
    with Store.open(where) as store:
        assert load_codebooks(store, "model") is None
        save_codebooks(store, "model", books)
        other = Codebooks({1: (some_quantiser(16, 4), some_quantiser(8, 2))})
        save_codebooks(store, "model", other)
        save_codebooks(store, "another", books)
    with Store.open(where) as store:
        found = [load_codebooks(store, name) for name in ("model", "another", "third")]
        assert [one and one.digest for one in found] == [other.digest, books.digest, None]
        assert store.verify().ok
