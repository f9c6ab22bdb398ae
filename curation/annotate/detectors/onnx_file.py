"""What must be known of an ONNX file before a library opens it: outputs' names, weights elsewhere, shapes taken out.

CenterFace was exported for images of 32 x 32; without these shapes a convolutional network takes any size. The file is
a protobuf message; of it only what this needs is read, all else is copied. Source: onnx.proto3 (ModelProto.graph
= 7; GraphProto.node = 1, initializer = 5, input = 11, output = 12, value_info = 13; NodeProto.attribute = 5;
AttributeProto.t = 5; TensorProto.external_data = 13; ValueInfoProto.name = 1, type = 2; TypeProto.tensor_type = 1;
TypeProto.Tensor.shape = 2; TensorShapeProto.dim = 1), protobuf encoding.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Edit = Callable[[bytes], bytes | None]


def without_fixed_shapes(model: bytes) -> bytes:
    """Return the model without the shapes of its inputs, outputs and inner values. Raises ValueError if damaged."""

    def value(message: bytes) -> bytes:
        return _edited(message, {2: lambda kind: _edited(kind, {1: _without_shape})})

    def graph(message: bytes) -> bytes:
        # What was inferred of the inside follows from the shapes that go.
        return _edited(message, {11: value, 12: value, 13: lambda _: None})

    return _edited(model, {7: graph})


def output_names(model: bytes) -> list[str]:
    """Return the names of the outputs in the file's order. Raises ValueError if it is damaged."""
    names = []
    for graph in _parts(model, 7):
        for output in _parts(graph, 12):
            names += [name.decode("utf-8", "replace") for name in _parts(output, 1)]
    return names


def check_weights_inside(model: bytes) -> None:
    """Raise ValueError if a weight lies in another file, or if the file is damaged."""
    for graph in _parts(model, 7):
        constants = (
            tensor for node in _parts(graph, 1) for attribute in _parts(node, 5) for tensor in _parts(attribute, 5)
        )
        for tensor in chain(_parts(graph, 5), constants):
            if any(True for _ in _parts(tensor, 13)):
                raise ValueError("its weights lie in another file; save them inside of it")


def _parts(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yield the length-delimited fields of one number."""
    for number, kind, _, begin, end in _fields(message):
        if kind == _BYTES and number == wanted:
            yield message[begin:end]


def _without_shape(tensor_type: bytes) -> bytes:
    # Their number stays: a dimension that says nothing is one of any size.
    return _edited(tensor_type, {2: lambda shape: _edited(shape, {1: lambda _: b""})})


def _edited(message: bytes, edits: Mapping[int, Edit]) -> bytes:
    """Return a message with its length-delimited fields of these numbers edited; None leaves one out."""
    parts = []
    for number, kind, start, begin, end in _fields(message):
        if kind != _BYTES or number not in edits:
            parts.append(message[start:end])
            continue
        content = edits[number](message[begin:end])
        if content is not None:
            parts += [_varint_bytes(number << 3 | _BYTES), _varint_bytes(len(content)), content]
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (number, wire type, start of the field, start of its content, end) of each field."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        kind, begin = tag & 7, position
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            size, begin = _varint(message, position)
            position = begin + size
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"not an ONNX file: wire type {kind} at byte {start}")
        if position > len(message):
            raise ValueError(f"not an ONNX file, or cut: a field at byte {start} ends after byte {len(message)}")
        yield tag >> 3, kind, start, begin, position


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return a number and the byte behind it."""
    value = 0
    for place in range(_MAX_VARINT_BYTES):
        if position + place >= len(message):
            break
        byte = message[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise ValueError(f"not an ONNX file, or cut: no number at byte {position}")


def _varint_bytes(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
