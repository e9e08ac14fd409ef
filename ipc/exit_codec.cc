// SPDX-License-Identifier: Apache-2.0
#include "ipc/exit_codec.h"

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>

namespace bulkhead {
namespace {

constexpr size_t kWordBytes = sizeof(capnp::word);
constexpr size_t kFrameWords = kFrameCapacity / kWordBytes;

template <typename Root, typename Fill>
void Encode(Frame& frame, Fill fill) {
  // FlatMessageBuilder wants zeroed space of exactly the message's size: the root pointer and the struct.
  constexpr size_t kWords = 1 + capnp::_::structSize<Root>().data + capnp::_::structSize<Root>().pointers;
  static_assert(kWords <= kFrameWords);
  frame.length_bytes = kWords * kWordBytes;
  std::memset(frame.bytes.data(), 0, frame.length_bytes);
  capnp::FlatMessageBuilder builder(kj::arrayPtr(reinterpret_cast<capnp::word*>(frame.bytes.data()), kWords));
  fill(builder.template initRoot<Root>());
}

// Cap'n Proto reports malformed messages by exception; frames are data of one word-aligned segment, so the limits
// below are never reached by an honest peer.
template <typename Root, typename Take>
Result<void> Decode(const Frame& frame, Take take) {
  if (frame.length_bytes == 0 || frame.length_bytes % kWordBytes != 0) return Error{EPROTO, "frame is not whole words"};
  const auto words =
      kj::arrayPtr(reinterpret_cast<const capnp::word*>(frame.bytes.data()), frame.length_bytes / kWordBytes);
  const kj::ArrayPtr<const capnp::word> segments[] = {words};
  capnp::ReaderOptions limits;
  limits.traversalLimitInWords = kFrameWords;
  limits.nestingLimit = 1;
  try {
    capnp::SegmentArrayMessageReader reader(kj::arrayPtr(segments, 1), limits);
    take(reader.template getRoot<Root>());
    return {};
  } catch (const kj::Exception&) {
    return Error{EPROTO, "frame does not decode"};
  }
}

}  // namespace

void EncodeRequest(const ExitRequest& request, Frame& frame) {
  Encode<exit::Request>(frame, [&](exit::Request::Builder out) {
    out.setSequence(request.sequence);
    out.setRegion(request.region);
    out.setWidth(request.width);
    out.setKind(request.kind);
    out.setOffset(request.offset);
    out.setData(request.data);
  });
}

void EncodeReply(const ExitReply& reply, Frame& frame) {
  Encode<exit::Reply>(frame, [&](exit::Reply::Builder out) {
    out.setSequence(reply.sequence);
    out.setData(reply.data);
    out.setHasDecode(reply.has_decode);
    out.setMemoryEnabled(reply.memory_enabled);
    out.setBar0Address(reply.bar0_address);
    out.setHasRoute(reply.has_route);
    out.setVector(reply.vector);
    out.setRouteAddress(reply.route_address);
    out.setRouteData(reply.route_data);
    out.setDeliver(reply.deliver);
  });
}

Result<ExitRequest> DecodeRequest(const Frame& frame) {
  ExitRequest request;
  auto decoded = Decode<exit::Request>(frame, [&](exit::Request::Reader in) {
    request = {.sequence = in.getSequence(),
               .region = in.getRegion(),
               .width = in.getWidth(),
               .kind = in.getKind(),
               .offset = in.getOffset(),
               .data = in.getData()};
  });
  if (!decoded.ok()) return decoded.error();
  const bool width_ok = request.width == 1 || request.width == 2 || request.width == 4 || request.width == 8;
  if (!width_ok) return Error{EPROTO, "access width is not 1, 2, 4 or 8"};
  if (request.kind > exit::Request::Kind::POSTED_WRITE) return Error{EPROTO, "unknown kind of request"};
  return request;
}

Result<ExitReply> DecodeReply(const Frame& frame) {
  ExitReply reply;
  auto decoded = Decode<exit::Reply>(frame, [&](exit::Reply::Reader in) {
    reply = {.sequence = in.getSequence(),
             .data = in.getData(),
             .has_decode = in.getHasDecode(),
             .memory_enabled = in.getMemoryEnabled(),
             .bar0_address = in.getBar0Address(),
             .has_route = in.getHasRoute(),
             .vector = in.getVector(),
             .route_address = in.getRouteAddress(),
             .route_data = in.getRouteData(),
             .deliver = in.getDeliver()};
  });
  if (!decoded.ok()) return decoded.error();
  return reply;
}

}  // namespace bulkhead
