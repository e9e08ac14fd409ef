// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the input is one exit frame, read as a request and as a reply. No byte beyond the frame is looked at, and
// what is accepted survives another trip.
#include <sanitizer/asan_interface.h>

#include "ipc/exit_codec.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using fuzz::Require;

bool Same(const ExitRequest& a, const ExitRequest& b) {
  return a.sequence == b.sequence && a.region == b.region && a.width == b.width && a.kind == b.kind &&
         a.offset == b.offset && a.data == b.data;
}

bool Same(const ExitReply& a, const ExitReply& b) {
  return a.sequence == b.sequence && a.data == b.data && a.has_decode == b.has_decode &&
         a.memory_enabled == b.memory_enabled && a.bar0_address == b.bar0_address && a.has_route == b.has_route &&
         a.vector == b.vector && a.route_address == b.route_address && a.route_data == b.route_data &&
         a.deliver == b.deliver;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Frame frame;
  frame.length_bytes = static_cast<uint32_t>(std::min<size_t>(size, kFrameCapacity));
  std::memcpy(frame.bytes.data(), data, frame.length_bytes);
  std::byte* const behind = frame.bytes.data() + frame.length_bytes;
  const size_t behind_bytes = kFrameCapacity - frame.length_bytes;
  __asan_poison_memory_region(behind, behind_bytes);
  const auto request = DecodeRequest(frame);
  const auto reply = DecodeReply(frame);
  __asan_unpoison_memory_region(behind, behind_bytes);
  Frame again;
  if (request.ok()) {
    Require(request->width != 0 && request->width <= 8 && (request->width & (request->width - 1)) == 0);
    Require(request->kind <= exit::Request::Kind::POSTED_WRITE);
    EncodeRequest(*request, again);
    Require(Same(OrThrow(DecodeRequest(again)), *request));
  }
  if (reply.ok()) {
    EncodeReply(*reply, again);
    Require(Same(OrThrow(DecodeReply(again)), *reply));
  }
  return 0;
}
