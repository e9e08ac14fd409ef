// SPDX-License-Identifier: Apache-2.0
// libFuzzer: what may leave a guest. Whatever the frame: its address is its own, and what says to come from an IP
// address comes from one that it may have.
#include <cstring>

#include "device-procs/net/receive_filter.h"
#include "device-procs/net/source_guard.h"
#include "ipc/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bulkhead::device;
  using bulkhead::fuzz::Require;
  constexpr MacAddress kMac{2, 0, 0, 0, 0, 1};
  constexpr Ip4Address kIp4{192, 0, 2, 1};
  constexpr Ip6Address kIp6{0x20, 0x01}, kLinkLocal{0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFE, 0, 0, 1};
  static const SourceGuard guard({.mac = kMac, .ip4 = {kIp4}, .ip6 = {kIp6}});
  static const ReceiveFilter filter{.promiscuous = false, .mac = kMac, .by_vlan = true};
  bulkhead::fuzz::FuzzInput input(data, size);
  const auto head = input.TakeBytes(kGuardedBytes);
  (void)filter.Wants(head.first(std::min(head.size(), kFilteredBytes)));
  if (!guard.Allows(head)) return 0;
  const auto* frame = reinterpret_cast<const uint8_t*>(head.data());
  Require(head.size() >= kEthernetBytes && std::memcmp(frame + 6, kMac.data(), 6) == 0);
  const unsigned type = frame[12] << 8 | frame[13];
  Require(type == 0x0800 || type == 0x0806 || type == 0x86DD);
  constexpr Ip6Address kNone{};
  const auto is = [&](size_t at, const auto& address) {
    Require(at + address.size() <= head.size());
    return std::memcmp(frame + at, address.data(), address.size()) == 0;
  };
  if (type == 0x0800) Require(is(26, kIp4) || is(26, Ip4Address{}));
  if (type == 0x0806) Require(is(22, kMac) && (is(28, kIp4) || is(28, Ip4Address{})));
  if (type == 0x86DD) Require(is(22, kIp6) || is(22, kLinkLocal) || is(22, kNone));
  return 0;
}
