// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/exit_server.h"

namespace bulkhead::device {
namespace {

using Kind = exit::Request::Kind;

// The runner takes each reply before it sends that vCPU's next request, and there are fewer slots than vCPUs only
// until the runner's own lock: a full reply ring means a runner that has stopped reading.
constexpr int64_t kReplyDeadlineNs = 1'000'000'000;

// After so many exits the loop sees to its other events, so that a guest which never stops asking does not keep kicks,
// timers and the broker waiting.
constexpr unsigned kExitsPerRound = 4 * kRingSlots;

// Posted writes that are committed together: their slots are not filled again before that.
constexpr unsigned kWritesPerCommit = kRingSlots / 2;

}  // namespace

ExitServer::ExitServer(ChannelMemory* channel, DeviceModel& device, Recorder& recorder,
                       std::vector<uint64_t> region_sizes, int64_t spin_ns, std::function<void(const Error&)> broken)
    : channel_(channel),
      requests_(&channel->requests),
      replies_(&channel->replies),
      device_(device),
      recorder_(recorder),
      region_sizes_(std::move(region_sizes)),
      spin_(spin_ns),
      broken_(std::move(broken)) {}

bool ExitServer::InRegion(const ExitRequest& request) const {
  if (request.region >= region_sizes_.size()) return false;
  const uint64_t size = region_sizes_[request.region];
  return request.width <= size && request.offset <= size - request.width;
}

void ExitServer::StartAt(const Recorder::Inheritance& inheritance) {
  requests_ = RingConsumer(&channel_->requests, inheritance.position.requests_taken);
  replies_ = RingProducer(&channel_->replies, inheritance.position.replies_given);
  replies_given_ = inheritance.position.replies_given;
  last_reply_ = inheritance.reply;
  requests_.GiveBack();
  if (replies_given_ != 0) replies_.PublishLast(std::span(last_reply_.bytes).first(last_reply_.length_bytes));
}

// A successor goes on after what was carried out so far.
void ExitServer::Commit() {
  recorder_.Commit({requests_.taken(), replies_given_}, last_reply_);
  requests_.GiveBack();
  uncommitted_ = 0;
}

ExitReply ExitServer::CarryOut(const ExitRequest& request) {
  const uint64_t mask = AllOnes(request.width);
  ExitReply reply{.sequence = request.sequence};
  if (request.kind == Kind::READ) {
    reply.data = device_.Read(request.region, request.offset, request.width) & mask;
    if (device_.ReadChanges(request.region, request.offset)) recorder_.MarkChanged();
    return reply;
  }
  const WriteEffect effect = device_.Write(request.region, request.offset, request.width, request.data & mask);
  recorder_.MarkChanged();
  if (effect.decode) {
    reply.has_decode = true;
    reply.memory_enabled = effect.decode->memory_enabled;
    reply.bar0_address = effect.decode->bar0_address;
  }
  if (effect.route) {
    reply.has_route = true;
    reply.vector = effect.route->vector;
    reply.route_address = effect.route->address;
    reply.route_data = effect.route->data;
    reply.deliver = effect.route->deliver;
  }
  return reply;
}

Result<void> ExitServer::Answer(const ExitRequest& request) {
  // The runner routes by the same grants: an access outside of them is not the guest's doing.
  if (!InRegion(request)) return Error{EPROTO, "exit outside the granted regions"};
  recorder_.Reach({requests_.taken() - 1, replies_given_});
  const ExitReply reply = CarryOut(request);
  if (request.kind == Kind::POSTED_WRITE) {
    if (++uncommitted_ == kWritesPerCommit) Commit();
    return {};
  }
  EncodeReply(reply, last_reply_);
  ++replies_given_;
  Commit();
  auto pushed =
      replies_.Push(std::span(last_reply_.bytes).first(last_reply_.length_bytes), Deadline::After(kReplyDeadlineNs));
  if (!pushed.ok()) return pushed;
  replies_.WakeFutex();
  return {};
}

Result<bool> ExitServer::ServeOne() {
  Frame frame;
  auto taken = requests_.Take(frame);
  if (!taken.ok() || !*taken) return taken;
  auto request = DecodeRequest(frame);
  if (!request.ok()) return request.error();
  if (auto answered = Answer(*request); !answered.ok()) return answered.error();
  return true;
}

void ExitServer::Drain() {
  // The ring is the predecessor's until its place is taken.
  if (recorder_.taking_over()) return;
  requests_.WakeUp();
  unsigned served = 0;
  do {
    const unsigned before = served;
    for (; served < kExitsPerRound; ++served) {
      auto one = ServeOne();
      if (!one.ok()) {
        broken_(one.error());
        return;
      }
      if (!*one) break;
    }
    if (served == before) return;
    device_.Flush();
    if (uncommitted_ != 0) Commit();
    // The vCPU that was just answered often comes back at once.
  } while (served < kExitsPerRound && spin_.Until([this] { return !requests_.Empty(); }));
}

void ExitServer::HandlersRan() {
  recorder_.MarkChanged();
  recorder_.Commit();
}

bool ExitServer::PrepareToSleep() { return recorder_.taking_over() || requests_.PrepareToSleep(); }

}  // namespace bulkhead::device
