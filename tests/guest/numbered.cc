// SPDX-License-Identifier: Apache-2.0
// numbered COUNT BEFORE FILE: whether a console's output is the lines from 1 to COUNT, each after the word BEFORE, and
// then BEFORE "end"; of which the death of its process may have repeated the end. Prints how many bytes are repeated,
// or what is wrong.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/process/harness.h"
#include "tests/process/repeating.h"

int main(int argc, char** argv) {
  using namespace bulkhead::test;
  if (argc != 4) {
    std::fprintf(stderr, "usage: numbered COUNT BEFORE FILE\n");
    return 2;
  }
  const unsigned long count = std::strtoul(argv[1], nullptr, 10);
  const std::string before = argv[2], text = ReadFile(argv[3]);
  std::string lines;
  for (unsigned long line = 1; line <= count; ++line) lines += before + std::to_string(line) + "\n";
  lines += before + "end\n";
  const size_t wrong = FirstNotRepeating(lines, text);
  if (wrong != std::string::npos) {
    constexpr size_t kContext = 40;
    const size_t from = wrong - std::min(wrong, kContext);
    std::printf("byte %zu, after \"%s\", comes \"%s\"\n", wrong, text.substr(from, wrong - from).c_str(),
                text.substr(wrong, kContext).c_str());
    return 1;
  }
  std::printf("%zu\n", text.size() - lines.size());
  return 0;
}
