"""Readers of untrusted tensor files."""

import argparse
import contextlib
import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from vgsplus.errors import CheckpointError
from vgsplus.tensor_files import Placeholder, attributes, read_pickle, read_tensors, read_torch


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD with a state for slots sets attributes on whatever stands before it."""
    for what in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"):
        path = tmp_path / "state.pkl"
        path.write_bytes(what + b"(N(dS'__init__'\nI1\nsS'__setstate__'\nI1\nstb.")
        with contextlib.suppress(CheckpointError):
            read_pickle(path)
        assert callable(Placeholder.__init__)
        path.write_bytes(pickle.dumps(argparse.Namespace(a=1)))
        assert attributes(read_pickle(path)) == {"a": 1}


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "t.pth")
    source, copy = zipfile.ZipFile(tmp_path / "t.pth"), io.BytesIO()
    with zipfile.ZipFile(copy, "w") as changed:
        for info in source.infolist():
            data = source.read(info)
            # The size in the pickle: (4,) becomes (200,).
            data = data.replace(b"K\x04\x85", b"K\xc8\x85") if info.filename.endswith("data.pkl") else data
            changed.writestr(info.filename, data)
    (tmp_path / "t.pth").write_bytes(copy.getvalue())
    with pytest.raises(CheckpointError, match="storage 0 should have 200"):
        read_torch(tmp_path / "t.pth")


def test_views_and_types_come_back_as_they_were(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "view": base[1:3, ::2].t(),
        "half": base.half(),
        "brain": base.bfloat16(),
        "long": base.long(),
        "bool": base > 3,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    for new_format in (True, False):
        torch.save(tensors, tmp_path / "t.pth", _use_new_zipfile_serialization=new_format)
        read = read_torch(tmp_path / "t.pth")
        assert all(torch.equal(read[name].read(), tensor) for name, tensor in tensors.items())
        assert all(read[name].read().dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_pickle_cannot_change_a_tensor(tmp_path):
    """A state for a tensor, its storage or its type is refused or has no effect."""
    torch.save({"x": torch.zeros(2)}, tmp_path / "t.pth")
    source = zipfile.ZipFile(tmp_path / "t.pth")
    data = next(name for name in source.namelist() if name.endswith("data.pkl"))
    pickled = source.read(data)
    state = b"N}X\x05\x00\x00\x00shapeI1\ns\x86b"
    for place in (b"FloatStorage\nq\x04", b"tq\x07Q", b"OrderedDict\nq\n", b")Rq\x0b", b"tq\x0cRq\r"):
        assert place in pickled
        changed = pickled.replace(place, place + state)
        with zipfile.ZipFile(tmp_path / "changed.pth", "w") as archive:
            for name in source.namelist():
                archive.writestr(name, changed if name == data else source.read(name))
        with contextlib.suppress(CheckpointError):
            read = read_torch(tmp_path / "changed.pth")["x"]
            assert torch.equal(read.read(), torch.zeros(2))
            assert read.shape == (2,)


def test_a_state_dict_is_found_under_the_keys_that_may_wrap_it(tmp_path):
    torch.save({"model": {"x": torch.ones(2)}, "epoch": 3}, tmp_path / "t.pth")
    assert read_tensors(tmp_path / "t.pth", unwrap=("model",)).keys() == {"x"}
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        read_tensors(tmp_path / "t.pth")
