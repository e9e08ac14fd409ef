// SPDX-License-Identifier: Apache-2.0
// The line by which the broker asks a device's process for a sign of life: a pair of sockets, past RPC, so that a
// process which has nothing else to do runs little code for it. What comes out of either end is its holder's word. The
// broker never waits at its end, whatever the other holder makes of the sockets' flags.
#pragma once

#include <cstdint>
#include <optional>

#include "ipc/fd.h"

namespace bulkhead {

struct PulseLine {
  OwnFd asking;     // the broker's
  OwnFd answering;  // the device's: readable when there is a question

  static PulseLine Make();  // throws FatalError

  // The broker. False where a process has shut the line down, so that nobody can be asked any more: that is none of its
  // successors' fault.
  bool Ask() const;
  // The last answer that has come since this was called before: how many questions in a row the slowest of the
  // process's threads has left open. 0 where the line is shut down in the other direction.
  std::optional<uint32_t> TakeAnswer() const;
};

// The device: takes the questions that there are, and answers them all at once.
void AnswerPulse(const OwnFd& answering, uint32_t open);

}  // namespace bulkhead
