// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/seccomp_facts_walk.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

namespace bulkhead::launcher {
namespace {

constexpr uint32_t kCallNumbers = 512;
constexpr uint32_t kX32Bit = 0x4000'0000;

using Value = std::optional<uint32_t>;  // nothing: unknown

// One call of the filter. The index register and scratch memory count as unknown: a filter that computes with them is
// walked more widely than it goes, never less.
class Walk {
 public:
  Walk(const std::vector<sock_filter>& program, uint32_t architecture, uint32_t number)
      : program_(program), architecture_(architecture), number_(number) {}

  bool ReachesAllow() {
    // Jumps only go forward, and no place is visited twice with the same value: the walk ends.
    pending_.push_back({0, Value{0}});
    while (!pending_.empty()) {
      const auto [at, accumulator] = pending_.back();
      pending_.pop_back();
      if (!seen_.insert({at, accumulator}).second) continue;
      if (at >= program_.size() || Step(at, accumulator)) return true;
    }
    return false;
  }

 private:
  // True if the call is let through here.
  bool Step(size_t at, Value accumulator) {
    const sock_filter& instruction = program_[at];
    switch (BPF_CLASS(instruction.code)) {
      case BPF_RET:
        return Lets(BPF_RVAL(instruction.code) == BPF_K ? Value(instruction.k) : accumulator);
      case BPF_JMP:
        Jump(at, instruction, accumulator);
        return false;
      case BPF_LD:
        pending_.push_back({at + 1, Load(instruction)});
        return false;
      case BPF_ALU:
        pending_.push_back({at + 1, Compute(instruction, accumulator)});
        return false;
      case BPF_MISC:
        pending_.push_back({at + 1, BPF_MISCOP(instruction.code) == BPF_TXA ? Value() : accumulator});
        return false;
      default:  // LDX, ST, STX: the accumulator stays
        pending_.push_back({at + 1, accumulator});
        return false;
    }
  }

  static bool Lets(Value result) {
    if (!result) return true;
    const uint32_t action = *result & SECCOMP_RET_ACTION_FULL;
    return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
  }

  Value Load(const sock_filter& instruction) const {
    if (BPF_MODE(instruction.code) == BPF_IMM) return instruction.k;
    if (BPF_MODE(instruction.code) != BPF_ABS || BPF_SIZE(instruction.code) != BPF_W) return std::nullopt;
    if (instruction.k == offsetof(seccomp_data, nr)) return number_;
    if (instruction.k == offsetof(seccomp_data, arch)) return architecture_;
    return std::nullopt;
  }

  static Value Compute(const sock_filter& instruction, Value accumulator) {
    if (!accumulator || BPF_SRC(instruction.code) != BPF_K) return std::nullopt;
    switch (BPF_OP(instruction.code)) {
      case BPF_AND:
        return *accumulator & instruction.k;
      case BPF_OR:
        return *accumulator | instruction.k;
      default:
        return std::nullopt;
    }
  }

  void Jump(size_t at, const sock_filter& instruction, Value accumulator) {
    if (BPF_OP(instruction.code) == BPF_JA) {
      pending_.push_back({at + 1 + instruction.k, accumulator});
      return;
    }
    const std::optional<bool> holds = Test(instruction, accumulator);
    if (holds.value_or(true)) pending_.push_back({at + 1 + instruction.jt, accumulator});
    if (!holds.value_or(false)) pending_.push_back({at + 1 + instruction.jf, accumulator});
  }

  static std::optional<bool> Test(const sock_filter& instruction, Value accumulator) {
    if (!accumulator || BPF_SRC(instruction.code) != BPF_K) return std::nullopt;
    switch (BPF_OP(instruction.code)) {
      case BPF_JEQ:
        return *accumulator == instruction.k;
      case BPF_JGT:
        return *accumulator > instruction.k;
      case BPF_JGE:
        return *accumulator >= instruction.k;
      case BPF_JSET:
        return (*accumulator & instruction.k) != 0;
      default:
        return std::nullopt;
    }
  }

  const std::vector<sock_filter>& program_;
  const uint32_t architecture_;
  const uint32_t number_;
  std::vector<std::pair<size_t, Value>> pending_;
  std::set<std::pair<size_t, Value>> seen_;
};

}  // namespace

AllowedCalls WalkSeccompProgram(std::string_view program) {
  std::vector<sock_filter> instructions(program.size() / sizeof(sock_filter));
  if (!instructions.empty()) {  // an empty vector has no address, and memcpy takes none
    std::memcpy(instructions.data(), program.data(), instructions.size() * sizeof(sock_filter));
  }
  AllowedCalls allowed{.numbers = {}, .other_tables = false, .instructions = instructions.size()};
  for (uint32_t number = 0; number < kCallNumbers; ++number) {
    if (Walk(instructions, AUDIT_ARCH_X86_64, number).ReachesAllow()) {
      allowed.numbers.push_back(static_cast<int>(number));
    }
    allowed.other_tables = allowed.other_tables || Walk(instructions, AUDIT_ARCH_I386, number).ReachesAllow() ||
                           Walk(instructions, AUDIT_ARCH_X86_64, number | kX32Bit).ReachesAllow();
  }
  return allowed;
}

}  // namespace bulkhead::launcher
