// SPDX-License-Identifier: Apache-2.0
// What a child says, fit to be shown to the user: it may hold a terminal's control sequences, or have no end. Broker,
// main thread. The text is hostile.
#pragma once

#include <string>
#include <string_view>

namespace bulkhead::broker {

inline constexpr size_t kMaxLineBytes = 400;

inline char PlainByte(char byte) {
  const auto code = static_cast<unsigned char>(byte);
  return code >= 0x20 && code < 0x7F ? byte : '?';
}

// The front of the text, with '?' for each byte that is not printable ASCII.
inline std::string PlainLine(std::string_view text) {
  std::string line(text.substr(0, kMaxLineBytes));
  for (char& byte : line) byte = PlainByte(byte);
  return line;
}

}  // namespace bulkhead::broker
