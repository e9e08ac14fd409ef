// SPDX-License-Identifier: Apache-2.0
// Exit frames to and from plain structs. Encoding is the sender's; decoding runs on a private copy of hostile bytes,
// with reader limits as tight as the schema. Runner vCPU threads and device threads.
#pragma once

#include <cstdint>

#include "ipc/exit.capnp.h"
#include "ipc/ring.h"

namespace bulkhead {

struct ExitRequest {
  uint32_t sequence = 0;
  uint16_t region = 0;
  uint8_t width = 0;
  exit::Request::Kind kind = exit::Request::Kind::READ;
  uint64_t offset = 0;
  uint64_t data = 0;
};

struct ExitReply {
  uint32_t sequence = 0;
  uint64_t data = 0;
  bool has_decode = false;
  bool memory_enabled = false;
  uint64_t bar0_address = 0;
  bool has_route = false;
  uint16_t vector = 0;
  uint64_t route_address = 0;
  uint32_t route_data = 0;
  bool deliver = false;
};

void EncodeRequest(const ExitRequest& request, Frame& frame);
void EncodeReply(const ExitReply& reply, Frame& frame);

// EPROTO where the bytes are no such message, or a field has a value its type does not allow (width, kind).
Result<ExitRequest> DecodeRequest(const Frame& frame);
Result<ExitReply> DecodeReply(const Frame& frame);

}  // namespace bulkhead
