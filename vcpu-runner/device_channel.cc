// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/device_channel.h"

namespace bulkhead::runner {

using Kind = exit::Request::Kind;

DeviceChannel::DeviceChannel(std::string name, ChannelMemory* channel, OwnFd doorbell, ChannelPatience patience,
                             ChannelEvents events)
    : name_(std::move(name)),
      channel_(channel),
      doorbell_(std::move(doorbell)),
      patience_(patience),
      events_(std::move(events)),
      requests_(&channel->requests),
      replies_(&channel->replies),
      spin_(patience.spin_ns) {}

// Waits until the deadline, and where that was not enough and a successor may come, on.
template <typename Wait>
Result<void> DeviceChannel::Patiently(Wait wait) {
  auto waited = wait(Deadline::After(patience_.deadline_ns));
  if (waited.ok() || waited.error().code != ETIMEDOUT || patience_.extra_ns == 0) return waited;
  events_.late();
  return wait(Deadline::After(patience_.extra_ns));
}

Result<void> DeviceChannel::Send(const ExitRequest& request) {
  Frame frame;
  EncodeRequest(request, frame);
  auto pushed = Patiently(
      [&](Deadline deadline) { return requests_.Push(std::span(frame.bytes).first(frame.length_bytes), deadline); });
  if (!pushed.ok()) return pushed;
  if (requests_.TakeWakeRequest()) SignalEventFd(doorbell_.get());
  return {};
}

Result<ExitReply> DeviceChannel::Exchange(ExitRequest request) {
  request.sequence = ++sequence_;
  if (auto sent = Send(request); !sent.ok()) return sent.error();
  auto waited = Patiently([&](Deadline deadline) { return replies_.WaitFutex(spin_, deadline); });
  if (!waited.ok()) return waited.error();
  Frame frame;
  auto popped = replies_.Pop(frame);
  if (!popped.ok()) return popped.error();
  auto reply = DecodeReply(frame);
  if (!reply.ok()) return reply;
  if (reply->sequence != request.sequence) return Error{EPROTO, "a reply to another request"};
  return reply;
}

uint64_t DeviceChannel::Read(uint16_t region, uint64_t offset, uint8_t width) {
  std::lock_guard lock(mutex_);
  if (failed()) return ~uint64_t{0};
  auto reply = Exchange({.region = region, .width = width, .kind = Kind::READ, .offset = offset});
  if (reply.ok()) return reply->data;
  Fail(reply.error());
  return ~uint64_t{0};
}

ExitReply DeviceChannel::Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) {
  std::lock_guard lock(mutex_);
  if (failed()) return {};
  auto reply = Exchange({.region = region, .width = width, .kind = Kind::WRITE, .offset = offset, .data = value});
  if (reply.ok()) return *reply;
  Fail(reply.error());
  return {};
}

void DeviceChannel::Post(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) {
  std::lock_guard lock(mutex_);
  if (failed()) return;
  auto sent = Send({.region = region, .width = width, .kind = Kind::POSTED_WRITE, .offset = offset, .data = value});
  if (!sent.ok()) Fail(sent.error());
}

void DeviceChannel::Fail(const Error& error) {
  if (failed_.exchange(true)) return;
  const int64_t waited_ns = patience_.deadline_ns + patience_.extra_ns;
  events_.failed(error.code == ETIMEDOUT
                     ? "did not answer the guest within " + std::to_string(waited_ns / 1'000'000) + " ms"
                     : "broke the exit protocol: " + error.message);
}

void DeviceChannel::MarkDead() {
  if (failed_.exchange(true)) return;
  PoisonChannel(channel_);
}

}  // namespace bulkhead::runner
