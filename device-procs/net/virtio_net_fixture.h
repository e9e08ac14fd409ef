// SPDX-License-Identifier: Apache-2.0
// For tests of virtio-net: a guest's driver with two pairs of queues before a back end that the test has in its hand.
// One thread.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "device-procs/net/net_driver.h"

namespace bulkhead::device::test {

inline constexpr uint16_t kReceive = 0, kTransmit = 1;
inline constexpr uint32_t kHeader = sizeof(PacketHeader);
inline constexpr uint64_t kOffloads =
    net_feature::kChecksum | net_feature::kGuestChecksum | net_feature::kGuestTso4 | net_feature::kHostTso4;
inline constexpr uint64_t kControl = net_feature::kControlQueue | net_feature::kControlReceive |
                                     net_feature::kControlVlan | net_feature::kControlMac | net_feature::kAnnounce;
inline constexpr PacketHeader kTso{
    .flags = 1, .gso_type = 1, .header_bytes = 54, .gso_bytes = 1448, .checksum_start = 34, .checksum_offset = 16};

inline std::string Command(int command_class, int command, const std::string& arguments) {
  return std::string{static_cast<char>(command_class), static_cast<char>(command)} + arguments;
}
template <typename T>
std::string Bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string Text(const MacAddress& mac) { return {mac.begin(), mac.end()}; }

class VirtioNetTest : public testing::Test {
 protected:
  // Receive buffers side by side; their heads.
  std::vector<uint16_t> Post(std::initializer_list<uint32_t> sizes, uint16_t queue = kReceive) {
    std::vector<uint16_t> heads;
    for (const uint32_t size : sizes) {
      heads.push_back(net_.ring(queue).Add({{next_, size, true}}));
      next_ = next_ + size;
    }
    net_.Kick(queue);
    return heads;
  }
  std::string Received(size_t bytes, uint64_t offset = 0) {
    return net_.ring(kReceive).GetText(NetDriver::kData + offset, bytes);
  }
  // What arrives is given to the guest in the order it comes; one that is known to be taken tells that the others were
  // not.
  void ExpectOnly(const std::string& frame, uint64_t offset = 0) {
    EXPECT_EQ(net_.Wait(kReceive).length, kHeader + frame.size());
    EXPECT_EQ(Received(frame.size(), offset + kHeader), frame);
    EXPECT_EQ(net_.ring(kReceive).TakeUsed(), std::nullopt);
  }
  std::string OnlySent() {
    const auto sent = net_.port().TakeSent();
    EXPECT_EQ(sent.size(), 1u);
    return sent.empty() ? "" : sent[0];
  }
  control::LinkState SetLink(bool up) { return net_.function().function().SetLink(up); }
  bool NeedsReset() { return (net_.function().Status() & kNeedsReset) != 0; }

  GuestMemory memory_ = MakeGuestMemory(NetDriver::kMemoryBytes);
  NetDriver net_{memory_, 2};
  Gpa next_ = NetDriver::kData;
};

}  // namespace bulkhead::device::test
