// SPDX-License-Identifier: Apache-2.0
#include "tests/process/wire.h"

#include "tests/payload/lib/numbered_frame.h"

namespace bulkhead::test {
namespace {

constexpr int kLookMs = 50;  // for the end of the test

const uint8_t* BytesOf(const std::string& frame) { return reinterpret_cast<const uint8_t*>(frame.data()); }

}  // namespace

Wire::Wire(const TapNetwork& network) : network_(network), thread_([this] { Serve(); }) {}

Wire::~Wire() {
  stop_ = true;
  thread_.join();
}

std::string Wire::Fault() const {
  const std::scoped_lock lock(mutex_);
  return fault_;
}

void Wire::Serve() {
  while (!stop_) {
    if (!network_.WaitForFrame(kLookMs)) continue;
    const std::string frame = network_.Receive();
    // The tap has been removed.
    if (frame.empty()) continue;
    const std::string fault = Take(frame);
    if (fault.empty()) {
      Answer(frame);
      continue;
    }
    const std::scoped_lock lock(mutex_);
    if (fault_.empty()) fault_ = fault;
  }
}

std::string Wire::Take(const std::string& frame) {
  Numbers numbers{};
  if (!TakeNumberedFrame(BytesOf(frame), static_cast<uint32_t>(frame.size()), &numbers)) {
    return "a frame of " + std::to_string(frame.size()) + " bytes that the guest did not send";
  }
  if (numbers.number < heard_) {
    return "frame " + std::to_string(numbers.number) + " after " + std::to_string(heard_);
  }
  if (numbers.got < arrived_ || numbers.got > sent_) {
    return "the guest got " + std::to_string(numbers.got) + " of " + std::to_string(sent_) + " after " +
           std::to_string(arrived_);
  }
  heard_ = numbers.number;
  arrived_ = numbers.got;
  return "";
}

// What finds no room is lost.
void Wire::Answer(const std::string& frame) {
  const Numbers numbers{++sent_, heard_};
  std::string answer(NumberedFrameBytes(numbers.number), '\0');
  PutNumberedFrame(reinterpret_cast<uint8_t*>(answer.data()), BytesOf(frame) + 6, BytesOf(frame), numbers);
  (void)network_.TrySend(answer);
}

}  // namespace bulkhead::test
