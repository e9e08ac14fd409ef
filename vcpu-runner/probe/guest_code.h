// SPDX-License-Identifier: Apache-2.0
// Small pieces of 64-bit guest code for the probe, each ending with a write to kDonePort. Data only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace bulkhead::probe {

inline constexpr uint16_t kDonePort = 0x80;      // BL is 1 for success
inline constexpr uint16_t kApPort = 0x81;        // a started application processor writes here
inline constexpr uint32_t kLoopCount = 100'000;  // of two instructions each
inline constexpr uint8_t kTestVector = 0x51;
inline constexpr uint32_t kApPage = 0x8;  // SIPI vector: the AP starts at 0x8000
inline constexpr uint64_t kDirtiedAddress = 0x5'0000;

// Where what the code needs lies in the probe guest's memory.
inline constexpr uint64_t kGdtAddress = 0x1000;
inline constexpr uint64_t kIdtAddress = 0x2000;
inline constexpr uint64_t kTssAddress = 0x3000;
inline constexpr uint64_t kPageTables = 0x4000;  // PML4, PDPT, and a page directory for each of four GiB
inline constexpr uint64_t kApCode = 0x8000;      // below the page directories' end, real mode
inline constexpr uint64_t kScratch = 0x2'0000;
inline constexpr uint64_t kStackTop = 0x3'0000;
inline constexpr uint64_t kCode = 0x4'0000;

// GDT selectors.
inline constexpr uint16_t kKernelCode = 0x08;
inline constexpr uint16_t kKernelData = 0x10;
inline constexpr uint16_t kUserData = 0x18;
inline constexpr uint16_t kUserCode = 0x20;
inline constexpr uint16_t kTask = 0x28;

std::span<const std::byte> LoopAtCpl0();
std::span<const std::byte> LoopAtCpl3();
std::span<const std::byte> Cmpxchg16b();
std::span<const std::byte> Xsave();
std::span<const std::byte> Breakpoint();        // int3 through the IDT
std::span<const std::byte> StartProcessor();    // INIT, SIPI to APIC id 1, then halts
std::span<const std::byte> StartedProcessor();  // 16-bit, what that one runs
std::span<const std::byte> AwaitInterrupt();    // spins until kTestVector is requested
std::span<const std::byte> DirtyOnePage();

}  // namespace bulkhead::probe
