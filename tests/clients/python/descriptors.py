"""Prints the descriptors inside the official package: for each file its serialized FileDescriptorProto, in hex."""

from rocketmq.grpc_protocol import admin_pb2, definition_pb2, service_pb2

for module in (definition_pb2, service_pb2, admin_pb2):
    print(module.DESCRIPTOR.serialized_pb.hex())
