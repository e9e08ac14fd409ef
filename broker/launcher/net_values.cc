// SPDX-License-Identifier: Apache-2.0
// The value of --net.
#include <arpa/inet.h>
#include <linux/if.h>

#include <algorithm>
#include <charconv>

#include "broker/launcher/option_words.h"
#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

constexpr size_t kMacBytes = 6;
constexpr uint64_t kMaxPairs = 8;
constexpr size_t kMaxAddresses = 64;
constexpr uint64_t kMinMtu = 68;  // RFC 791
constexpr uint64_t kMaxMtu = 65535;
constexpr uint64_t kMinMtu6 = 1280;      // RFC 8200 §5
constexpr uint64_t kMaxUserMtu = 65521;  // libslirp's
constexpr size_t kMaxIdBytes = 20;

std::string ParseInterface(const std::string& key, const std::string& name) {
  const bool good = !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
                    std::none_of(name.begin(), name.end(),
                                 [](char c) { return c <= ' ' || c > '~' || c == '/' || c == ':' || c == '%'; });
  if (!good) {
    throw UsageError("--net: " + key + "='" + name + "' is no name of a network interface; they have 1 to " +
                     std::to_string(IFNAMSIZ - 1) + " characters");
  }
  return name;
}

std::vector<uint8_t> ParseMac(const std::string& text) {
  const UsageError wrong("--net: mac='" + text + "' is no MAC address; write it like 52:54:00:12:34:56");
  std::vector<uint8_t> mac;
  for (size_t at = 0; at < text.size() + 1; at += 3) {
    uint8_t byte = 0;
    const bool separated = at + 2 == text.size() || (at + 2 < text.size() && text[at + 2] == ':');
    if (!separated || mac.size() == kMacBytes) throw wrong;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + at + 2, byte, 16);
    if (error != std::errc() || end != text.data() + at + 2) throw wrong;
    mac.push_back(byte);
  }
  if (mac.size() != kMacBytes) throw wrong;
  if ((mac[0] & 1) != 0) {
    throw UsageError("--net: mac=" + text + " is the address of a group; the first byte of a host's is even");
  }
  if (std::all_of(mac.begin(), mac.end(), [](uint8_t byte) { return byte == 0; })) {
    throw UsageError("--net: mac=" + text + " is no host's; leave mac away to have one made");
  }
  return mac;
}

std::vector<uint8_t> ParseAddress(const std::string& text) {
  std::vector<uint8_t> address(sizeof(in6_addr));
  const bool ip6 = text.find(':') != std::string::npos;
  if (::inet_pton(ip6 ? AF_INET6 : AF_INET, text.c_str(), address.data()) != 1) {
    throw UsageError("--net: ip: '" + text +
                     "' is no IP address; write them like 192.0.2.7 or 2001:db8::7, with + between");
  }
  if (!ip6) address.resize(sizeof(in_addr));
  return address;
}

std::vector<std::vector<uint8_t>> ParseAddresses(const std::string& text) {
  std::vector<std::vector<uint8_t>> addresses;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('+', at), text.size());
    addresses.push_back(ParseAddress(text.substr(at, end - at)));
    at = end + 1;
  }
  if (addresses.size() > kMaxAddresses) {
    throw UsageError("--net: ip: there are more than " + std::to_string(kMaxAddresses) + " addresses");
  }
  return addresses;
}

uint16_t ParseBetween(const std::string& key, const std::string& value, uint64_t least, uint64_t most) {
  uint64_t number = 0;
  if (!ParseNumber(value, number) || number < least || number > most) {
    throw UsageError("--net: " + key + " is a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return static_cast<uint16_t>(number);
}

bool ParseSwitch(const std::string& key, const std::string& value) {
  if (value == "on") return true;
  if (value == "off") return false;
  throw UsageError("--net: " + key + " is on or off, not '" + value + "'");
}

bool ParseSpoofing(const std::string& value) {
  if (value == "allow") return true;
  if (value == "deny") return false;
  throw UsageError("--net: mac-spoofing is allow or deny, not '" + value + "'");
}

bool ParseLink(const std::string& value) {
  if (value == "on") return true;
  if (value == "off") return false;
  throw UsageError("--net: link is on or off, not '" + value + "'");
}

bool HasOutside(const NetOption& net) { return net.kind == NetOption::Kind::kUser || !net.interface.empty(); }

void SetNetWord(NetOption& net, const std::string& key, const std::string& value) {
  if (key == "tap" || key == "bridge") {
    if (HasOutside(net)) throw UsageError("--net: give one of tap=NAME, bridge=NAME and user, once");
    net.kind = key == "tap" ? NetOption::Kind::kTap : NetOption::Kind::kBridge;
    net.interface = ParseInterface(key, value);
  } else if (key == "mac") {
    net.mac = ParseMac(value);
  } else if (key == "ip") {
    net.addresses = ParseAddresses(value);
  } else if (key == "mac-spoofing") {
    net.any_mac = ParseSpoofing(value);
  } else if (key == "link") {
    net.link_on = ParseLink(value);
  } else if (key == "queues") {
    net.queues = ParseBetween(key, value, 1, kMaxPairs);
  } else if (key == "mtu") {
    net.mtu = ParseBetween(key, value, kMinMtu, kMaxMtu);
  } else if (key == "vhost") {
    net.vhost = ParseSwitch(key, value);
  } else if (key == "id") {
    if (value.empty() || value.size() > kMaxIdBytes) throw UsageError("--net: id has 1 to 20 characters");
    net.id = value;
  } else if (key == "user") {
    if (HasOutside(net)) throw UsageError("--net: give one of tap=NAME, bridge=NAME and user, once");
    if (!value.empty()) throw UsageError("--net: user has no value");
    net.kind = NetOption::Kind::kUser;
  } else if (!SetThrottleWord("--net", "pps", net.throttle, key, value)) {
    throw UsageError(
        "--net: unknown word '" + key +
        "'; known are tap, bridge, user, mac, ip, mac-spoofing, queues, mtu, vhost, id, link, bps, bps-burst, pps and "
        "pps-burst, and "
        "with user hostfwd, guestfwd, allow, deny, restrict, dns, hostname, net, ipv4 and ipv6");
  }
}

// With vhost no packet passes a process of Bulkhead's: what would be done there must not be asked for, and what is done
// there unasked be given up by name.
void CheckVhost(const NetOption& net) {
  if (net.kind == NetOption::Kind::kUser) throw UsageError("--net user: vhost goes with tap and bridge only");
  if (!net.addresses.empty()) {
    throw UsageError("--net: ip cannot be held against packets that the kernel carries; leave ip or vhost away");
  }
  if (net.throttle.bytes_per_second != 0 || net.throttle.operations_per_second != 0) {
    throw UsageError("--net: bps and pps cannot limit packets that the kernel carries; leave them or vhost away");
  }
  if (!net.any_mac) {
    throw UsageError(
        "--net: with vhost=on nothing keeps the guest from sending with other MAC addresses than its own; add "
        "mac-spoofing=allow if that may be, or leave vhost away");
  }
}

}  // namespace

NetOption ParseNet(const std::string& text) {
  NetOption net;
  std::string user_word;
  for (const std::string& word : SplitAtCommas(text)) {
    const size_t equals = std::min(word.find('='), word.size());
    const std::string key = word.substr(0, equals), value = equals == word.size() ? "" : word.substr(equals + 1);
    if (SetUserNetWord(net.user, key, value)) {
      user_word = key;
    } else {
      SetNetWord(net, key, value);
    }
  }
  if (!HasOutside(net)) {
    throw UsageError("--net: name a tap or a bridge, as in --net tap=tap0 or --net bridge=br0, or say user");
  }
  const bool user = net.kind == NetOption::Kind::kUser;
  if (!user && !user_word.empty()) throw UsageError("--net: " + user_word + " goes with user only");
  if (user) {
    CheckUserNet(net.user);
    if (net.queues > 1) throw UsageError("--net user: has one pair of queues; leave queues away");
    if (net.mtu != 0 && (net.mtu < (net.user.ip6 ? kMinMtu6 : kMinMtu) || net.mtu > kMaxUserMtu)) {
      throw UsageError("--net user: mtu is a number from 68, with IPv6 from 1280, to 65521");
    }
  }
  CheckBursts("--net", "pps", net.throttle);
  if (net.vhost) CheckVhost(net);
  return net;
}

std::vector<uint8_t> DefaultMac(const std::string& vm, const std::string& interface) {
  // FNV-1a: what matters is that others rarely get the same.
  uint64_t hash = 0xCBF2'9CE4'8422'2325;
  for (const char c : vm + "/" + interface) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100'0000'01B3;
  hash ^= hash >> 32;
  std::vector<uint8_t> mac{0x02};  // locally administered, of one host (IEEE 802, §8.4)
  for (unsigned i = 0; i < kMacBytes - 1; ++i) mac.push_back(static_cast<uint8_t>(hash >> (8 * i)));
  return mac;
}

}  // namespace bulkhead::launcher
