// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_server.h"

#include <algorithm>

#include "ipc/result.h"

namespace bulkhead::device {
namespace {

// What is gathered into one transfer is bounded: a device has more than one under way, and reads the first of them
// while the rest is still being taken.
constexpr uint64_t kMaxRunBytes = 256 * 1024;
constexpr size_t kMaxRunVectors = 256;

bool IsTransfer(RequestType type) { return type == RequestType::kRead || type == RequestType::kWrite; }

}  // namespace

class QueueServer::Request final : public BlockCompletion {
 public:
  explicit Request(QueueServer& owner) : server(owner) {}

  void Completed(int error) override { server.Continue(*this, error); }

  QueueServer& server;
  Request* next = nullptr;  // of its run
  Chain chain;
  DiskRequest parsed;
  std::vector<iovec> vectors;  // of the run that it is the first of
  size_t next_segment = 0;
  bool flushed = false;
};

QueueServer::QueueServer(const GuestMemory& memory, BlockChannel& channel, Throttle& throttle,
                         const std::string& disk_id, uint16_t queue_size, Log log)
    : memory_(memory), channel_(channel), throttle_(throttle), log_(std::move(log)) {
  // Shorter ids end with a zero byte, one of full length does not (§5.2.6).
  std::copy_n(disk_id.begin(), std::min(disk_id.size(), disk_id_.size()), disk_id_.begin());
  for (uint16_t i = 0; i < queue_size; ++i) requests_.push_back(std::make_unique<Request>(*this));
}

QueueServer::~QueueServer() = default;

void QueueServer::Start(const QueueSession& session) {
  session_ = session;
  broken_ = false;
  abandoned_ = false;
  throttled_ns_ = 0;
  free_.clear();
  // A driver that has more chains out than its queue has entries broke the protocol; it waits for its own requests.
  const size_t limit = std::min<size_t>(requests_.size(), session.queue->layout().size);
  for (size_t i = 0; i < limit; ++i) free_.push_back(requests_[i].get());
}

void QueueServer::End() { session_ = {}; }

bool QueueServer::TakeChains() {
  const bool more = TakeBatch();
  BeginRun();
  return more;
}

bool QueueServer::EnableKicks() {
  // A completion leads back there, or the caller's alarm.
  if (!TakesChains()) return false;
  const auto more = session_.queue->EnableKicks();
  if (!more.ok()) Break();
  return more.ok() && *more;
}

bool QueueServer::TakeBatch() {
  throttled_ns_ = 0;
  if (broken_) return false;
  if (!session_.queue->DisableKicks().ok()) {
    Break();
    return false;
  }
  for (uint32_t taken = 0; taken < session_.queue->layout().size; ++taken) {
    if (free_.empty()) return false;
    // Before the chain is taken: what has to wait stays the driver's, and nothing is held here when the device stops.
    if (throttle_.limited()) {
      throttled_ns_ = throttle_.WaitNs(Throttle::NowNs());
      if (throttled_ns_ != 0) return false;
    }
    Request& request = *free_.back();
    const auto popped = session_.queue->Pop(request.chain);
    if (!popped.ok()) {
      Break();
      return false;
    }
    if (!*popped) return false;
    free_.pop_back();
    ++in_flight_;
    Begin(request);
    if (broken_) return false;
  }
  return true;
}

void QueueServer::SignalCompletions() {
  if (!std::exchange(given_back_, false)) return;
  const auto wanted = session_.queue->NeedsInterrupt();
  if (!wanted.ok()) {
    Break();
  } else if (*wanted) {
    session_.transport->SignalQueue(session_.index);
  }
}

void QueueServer::Break() {
  broken_ = true;
  session_.transport->MarkNeedsReset();
}

void QueueServer::Begin(Request& request) {
  request.next = nullptr;
  request.next_segment = 0;
  request.flushed = false;
  const RequestStatus status = ParseRequest(memory_, request.chain, session_.rules, request.parsed);
  if (status != RequestStatus::kOk) {
    Finish(request, status);
    return;
  }
  if (throttle_.limited()) Charge(request.parsed);
  if (!IsTransfer(request.parsed.type)) BeginRun();
  switch (request.parsed.type) {
    case RequestType::kRead:
    case RequestType::kWrite:
      Gather(request);
      break;
    case RequestType::kFlush:
      request.flushed = true;
      channel_.Flush(request);
      break;
    case RequestType::kGetId: {
      const auto written = WritePieces(memory_, request.chain.writable, 0, std::as_bytes(std::span(disk_id_)));
      Finish(request, written.ok() ? RequestStatus::kOk : RequestStatus::kIoError);
      break;
    }
    case RequestType::kDiscard:
    case RequestType::kWriteZeroes:
      NextSegment(request);
      break;
  }
}

void QueueServer::Charge(const DiskRequest& request) {
  throttle_.Charge(Throttle::NowNs(), IsTransfer(request.type) ? request.data_bytes : 0,
                   std::max<size_t>(request.segments.size(), 1));
}

void QueueServer::Gather(Request& request) {
  const DiskRequest& parsed = request.parsed;
  const bool follows = run_.first != nullptr && run_.first->parsed.type == parsed.type &&
                       run_.end_bytes == parsed.offset_bytes && run_.size_bytes + parsed.data_bytes <= kMaxRunBytes &&
                       run_.first->vectors.size() < kMaxRunVectors;
  if (!follows) {
    BeginRun();
    request.vectors.clear();
  }
  std::vector<iovec>& vectors = follows ? run_.first->vectors : request.vectors;
  const size_t before = vectors.size();
  if (!TranslateData(memory_, request.chain, parsed, vectors).ok()) {
    vectors.resize(before);
    Finish(request, RequestStatus::kIoError);
    return;
  }
  if (follows) {
    run_.last->next = &request;
  } else {
    run_.first = &request;
    run_.size_bytes = 0;
  }
  run_.last = &request;
  run_.size_bytes += parsed.data_bytes;
  run_.end_bytes = parsed.offset_bytes + parsed.data_bytes;
}

void QueueServer::BeginRun() {
  Request* first = std::exchange(run_.first, nullptr);
  if (first != nullptr) BeginTransfer(*first);
}

void QueueServer::BeginTransfer(Request& first) {
  if (first.parsed.type == RequestType::kRead) {
    channel_.Read(first.parsed.offset_bytes, first.vectors, first);
  } else {
    channel_.Write(first.parsed.offset_bytes, first.vectors, first);
  }
}

void QueueServer::NextSegment(Request& request) {
  const RequestSegment segment = request.parsed.segments[request.next_segment++];
  if (request.parsed.type == RequestType::kDiscard) {
    channel_.Discard(segment.offset_bytes, segment.size_bytes, request);
  } else {
    channel_.WriteZeroes(segment.offset_bytes, segment.size_bytes, segment.unmap, request);
  }
}

void QueueServer::Continue(Request& first, int error) {
  if (error != 0) {
    Failed(first, error);
    return;
  }
  if (first.next_segment < first.parsed.segments.size()) {
    if (abandoned_) {
      Finish(first, RequestStatus::kIoError);
    } else {
      NextSegment(first);
    }
    return;
  }
  const bool writes = first.parsed.type == RequestType::kWrite || first.parsed.type == RequestType::kWriteZeroes;
  if (writes && !first.flushed && session_.write_through->load(std::memory_order_relaxed)) {
    first.flushed = true;
    channel_.Flush(first);
    return;
  }
  FinishRun(first, RequestStatus::kOk);
}

void QueueServer::Failed(Request& first, int error) {
  if (first.next == nullptr || first.flushed || abandoned_) {
    LogFailure(first, error);
    FinishRun(first, RequestStatus::kIoError);
    return;
  }
  // What is wrong with one of them is not the others' fault: each by itself.
  for (Request* each = &first; each != nullptr;) {
    Request& request = *std::exchange(each, each->next);
    request.next = nullptr;
    request.vectors.clear();
    if (TranslateData(memory_, request.chain, request.parsed, request.vectors).ok()) {
      BeginTransfer(request);
    } else {
      Finish(request, RequestStatus::kIoError);
    }
  }
}

void QueueServer::FinishRun(Request& first, RequestStatus status) {
  for (Request* each = &first; each != nullptr;) Finish(*std::exchange(each, each->next), status);
}

void QueueServer::Finish(Request& request, RequestStatus status) {
  // A read that failed may have got part of it.
  if (request.parsed.type == RequestType::kRead) {
    NoteWrittenPieces(memory_, request.chain.writable, 0, request.parsed.data_bytes);
  }
  const uint32_t written = WriteStatus(memory_, request.chain, status);
  if (!session_.queue->Push(request.chain.head, written).ok() && !broken_) Break();
  given_back_ = true;
  --in_flight_;
  free_.push_back(&request);
}

void QueueServer::LogFailure(const Request& request, int error) {
  const auto what = [&]() -> std::string {
    switch (request.parsed.type) {
      case RequestType::kRead:
        return "read of " + std::to_string(request.parsed.data_bytes) + " bytes at byte " +
               std::to_string(request.parsed.offset_bytes);
      case RequestType::kWrite:
        return "write of " + std::to_string(request.parsed.data_bytes) + " bytes at byte " +
               std::to_string(request.parsed.offset_bytes);
      case RequestType::kDiscard:
        return "discard";
      case RequestType::kWriteZeroes:
        return "write of zeroes";
      default:
        return "flush";
    }
  };
  log_(ErrnoError(error, "disk image: " + what() + " failed").message);
}

}  // namespace bulkhead::device
