// SPDX-License-Identifier: Apache-2.0
// What a classic BPF system call filter lets through, found by walking it for each number with the arguments unknown:
// wherever the program asks for one, both ways are gone. So no call is missed; one that is named can be made with some
// arguments. Programs may be hostile: any bytes end the walk. Launcher, main thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace bulkhead::launcher {

struct AllowedCalls {
  std::vector<int> numbers;   // of x86-64, ascending
  bool other_tables = false;  // some call by the numbers of i386 or x32
  size_t instructions = 0;
};

// `program`: struct sock_filter after struct sock_filter.
AllowedCalls WalkSeccompProgram(std::string_view program);

}  // namespace bulkhead::launcher
