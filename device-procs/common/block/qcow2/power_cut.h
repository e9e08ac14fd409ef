// SPDX-License-Identifier: Apache-2.0
// For tests: the disk that a power cut left.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"

namespace bulkhead::qcow2::test {

// One request of a guest, whose end is noticed.
struct Request final : device::BlockCompletion {
  void Completed(int e) override {
    error = e;
    ended = true;
  }
  std::vector<std::byte> bytes;
  iovec vector{};
  int error = 0;
  bool ended = false;
};

// What the disk in `image` reads as, over `base` if that has any bytes. The tables have to agree but for leaks.
inline void ReadAfterPowerCut(std::vector<std::byte> image, device::test::MemoryFile& base,
                              std::vector<std::byte>& content) {
  device::test::MemoryFile file;
  file.bytes = std::move(image);
  OpenOptions options;
  options.purpose = Purpose::kCheck;
  if (!base.bytes.empty()) options.backing = {&base, base.bytes.size()};
  device::InlineOffload offload;
  Qcow2Channel disk(file, {.size_bytes = file.bytes.size()}, offload, options);
  OrThrow(file.Do(disk.Open()));
  const CheckReport report = OrThrow(file.Do(Check(disk, Repair::kNone)));
  ASSERT_EQ(report.corruptions, 0u) << (report.messages.empty() ? "" : report.messages[0]);
  Request read;
  read.bytes.resize(disk.header().size_bytes);
  read.vector = {read.bytes.data(), read.bytes.size()};
  disk.Read(0, {&read.vector, 1}, read);
  while (file.Step() || base.Step()) {
  }
  ASSERT_TRUE(read.ended);
  ASSERT_EQ(read.error, 0);
  content = std::move(read.bytes);
}

}  // namespace bulkhead::qcow2::test
