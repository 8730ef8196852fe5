"""Which data files a graph names, in every place and spelling that protobuf allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from runtime.bundle.external_data import external_files
from runtime.errors import BundleError


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=external(location), dims=[1])


def body(location: str) -> onnx.GraphProto:
    return onnx.GraphProto(name="body", initializer=[external(location)])


def attribute(name: str, **value: object) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, **value)


def node(location: str) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="X", attribute=[attribute("t", t=external(location))])


def in_attribute(made: onnx.AttributeProto) -> onnx.GraphProto:
    return onnx.GraphProto(node=[onnx.NodeProto(op_type="X", attribute=[made])])


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda name: onnx.ModelProto(graph=body(name)),
    "sparse initializer": lambda name: onnx.ModelProto(
        graph=onnx.GraphProto(sparse_initializer=[sparse(name)])
    ),
    "attribute t": lambda name: onnx.ModelProto(graph=onnx.GraphProto(node=[node(name)])),
    "attribute tensors": lambda name: onnx.ModelProto(
        graph=in_attribute(attribute("a", tensors=[external("first"), external(name)]))
    ),
    "attribute g": lambda name: onnx.ModelProto(graph=in_attribute(attribute("a", g=body(name)))),
    "attribute graphs": lambda name: onnx.ModelProto(
        graph=in_attribute(attribute("a", graphs=[body("first"), body(name)]))
    ),
    "attribute sparse_tensor": lambda name: onnx.ModelProto(
        graph=in_attribute(attribute("a", sparse_tensor=sparse(name)))
    ),
    "attribute sparse_tensors": lambda name: onnx.ModelProto(
        graph=in_attribute(attribute("a", sparse_tensors=[sparse(name)]))
    ),
    "function": lambda name: onnx.ModelProto(functions=[onnx.FunctionProto(node=[node(name)])]),
}


@pytest.mark.parametrize("name", ["w.data", "d/" + "long" * 40])  # 128 bytes take two to count
@pytest.mark.parametrize("place", PLACES)
def test_external_file_is_found_wherever_it_is_named(tmp_path: Path, place: str, name: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(PLACES[place](name).SerializeToString())
    assert name in external_files(file)


def wrapped(*fields: int, content: bytes) -> bytes:
    """A message inside messages, the outermost field first."""
    for field in reversed(fields):
        content = bytes([field << 3 | 2, len(content)]) + content
    return content


def test_value_before_its_key_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    entry = b"\x12\x0fmodel.onnx.dat2\x0a\x08location"
    file.write_bytes(wrapped(7, 5, 13, content=entry))
    (tensor,) = onnx.ModelProto.FromString(file.read_bytes()).graph.initializer
    assert tensor.external_data[0].value == "model.onnx.dat2"  # to protobuf it is the same
    assert external_files(file) == {"model.onnx.dat2"}


def test_last_of_two_values_counts_as_in_protobuf(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    entry = b"\x0a\x08location\x12\x05first\x12\x04last"
    file.write_bytes(wrapped(7, 5, 13, content=entry))
    assert external_files(file) == {"last"}


def test_name_in_a_text_or_a_weight_is_none(tmp_path: Path) -> None:
    file, pair = tmp_path / "model.onnx", b"\x0a\x08location\x12\x05other"
    inline = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[len(pair)], raw_data=pair)
    graph = onnx.GraphProto(initializer=[inline], doc_string=pair.decode())
    file.write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    assert external_files(file) == set()


def test_real_graph_names_its_data_file(tiny_bundle: Path) -> None:
    assert external_files(tiny_bundle / "model.onnx") == {"model.onnx.data"}


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a",  # no length
        b"\x3a\x05abc",  # cut off
        b"\x08\xff",  # a number cut off
        b"\x08" + b"\xff" * 11,  # a number without end
        b"\x0d\x00\x00",  # four bytes cut off
        b"\x3b\x3c",  # a group
        b"\x02\x00",  # field 0
        b"\xfa\xff\xff\xff\x7f\x00",  # protobuf would cut this field's number to 32 bits
        wrapped(7, 5, 13, content=b"\x0a\x08location\x12\x01\xff"),  # not UTF-8
    ],
)
def test_malformed_graph_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot load .*model\.onnx") as caught:
        external_files(file)
    assert "\n" not in str(caught.value)


def test_large_inline_weights_are_jumped_over(tmp_path: Path) -> None:
    file, size = tmp_path / "model.onnx", 100_000_000
    weight = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[size], raw_data=bytes(size))
    tensors = [weight, external("w.data")]
    file.write_bytes(
        onnx.ModelProto(graph=onnx.GraphProto(initializer=tensors)).SerializeToString()
    )
    start = time.perf_counter()
    assert external_files(file) == {"w.data"}
    assert time.perf_counter() - start < 5  # byte by byte it takes 20 s and more


def test_deeply_nested_graphs_are_no_recursion(tmp_path: Path) -> None:
    content = external("w.data").SerializeToString()
    fields = (5, *(6, 5, 1) * 2000, 7)  # initializer, Graph.node.attribute.g over and over, graph
    for field in fields:
        size = len(content)
        length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
        content = bytes([field << 3 | 2]) + length + content
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    assert external_files(file) == {"w.data"}
