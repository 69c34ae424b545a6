from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnnxModel(_message.Message):
    __slots__ = ("graph", "opset_import", "training_info", "functions")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    OPSET_IMPORT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_INFO_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    graph: OnnxGraph
    opset_import: _containers.RepeatedCompositeFieldContainer[OnnxOpset]
    training_info: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    functions: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    def __init__(self, graph: _Optional[_Union[OnnxGraph, _Mapping]] = ..., opset_import: _Optional[_Iterable[_Union[OnnxOpset, _Mapping]]] = ..., training_info: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ..., functions: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ...) -> None: ...

class OnnxOpset(_message.Message):
    __slots__ = ("domain", "version")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    domain: str
    version: int
    def __init__(self, domain: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class OnnxGraph(_message.Message):
    __slots__ = ("node", "initializer", "sparse_initializer")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    SPARSE_INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    node: _containers.RepeatedCompositeFieldContainer[OnnxNode]
    initializer: _containers.RepeatedCompositeFieldContainer[OnnxTensor]
    sparse_initializer: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    def __init__(self, node: _Optional[_Iterable[_Union[OnnxNode, _Mapping]]] = ..., initializer: _Optional[_Iterable[_Union[OnnxTensor, _Mapping]]] = ..., sparse_initializer: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ...) -> None: ...

class OnnxNode(_message.Message):
    __slots__ = ("op_type", "attribute", "domain")
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    op_type: str
    attribute: _containers.RepeatedCompositeFieldContainer[OnnxAttribute]
    domain: str
    def __init__(self, op_type: _Optional[str] = ..., attribute: _Optional[_Iterable[_Union[OnnxAttribute, _Mapping]]] = ..., domain: _Optional[str] = ...) -> None: ...

class OnnxAttribute(_message.Message):
    __slots__ = ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors")
    T_FIELD_NUMBER: _ClassVar[int]
    G_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TENSOR_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TENSORS_FIELD_NUMBER: _ClassVar[int]
    t: OnnxTensor
    g: OnnxIgnored
    tensors: _containers.RepeatedCompositeFieldContainer[OnnxTensor]
    graphs: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    sparse_tensor: OnnxIgnored
    sparse_tensors: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    def __init__(self, t: _Optional[_Union[OnnxTensor, _Mapping]] = ..., g: _Optional[_Union[OnnxIgnored, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[OnnxTensor, _Mapping]]] = ..., graphs: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ..., sparse_tensor: _Optional[_Union[OnnxIgnored, _Mapping]] = ..., sparse_tensors: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ...) -> None: ...

class OnnxTensor(_message.Message):
    __slots__ = ("name", "external_data", "data_location")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_LOCATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    external_data: _containers.RepeatedCompositeFieldContainer[OnnxIgnored]
    data_location: int
    def __init__(self, name: _Optional[str] = ..., external_data: _Optional[_Iterable[_Union[OnnxIgnored, _Mapping]]] = ..., data_location: _Optional[int] = ...) -> None: ...

class OnnxIgnored(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
