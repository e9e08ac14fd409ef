// SPDX-License-Identifier: Apache-2.0
// Makes changed tables durable, in an order that leaves a good image whenever it is cut off. Changes only gather in
// memory until somebody wants them on the disk; then all that are there go together:
//
//   refcount blocks           so that no table names a cluster that counts as free
//   flush                     also of the data that the tables will name
//   refcount table, flush     where it grew into new blocks
//   second-level tables       new ones as well
//   flush, first-level table  where it changed
//   flush
//
// A reference enters a table in memory only when its data are written, so what a checkpoint takes is complete. What it
// no longer names is given back after it, when nobody who might have looked before is still at work: until then it
// counts as in use. Cut off anywhere, the image has clusters that count as used and are not: leaks, nothing else.
//
// Image's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "device-procs/common/block/qcow2/image_state.h"

namespace bulkhead::qcow2 {

// A range of clusters that lost one reference.
struct Freed {
  uint64_t offset = 0;  // of its first cluster
  uint64_t clusters = 0;
};

class Checkpointer {
 public:
  // Takes the references away, when that is safe.
  using Release = std::function<device::Task<Result<void>>(std::vector<Freed>)>;

  Checkpointer(ImageState& state, Release release) : state_(state), release_(std::move(release)) {}
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Makes durable what was written and changed before the call.
  device::Task<Result<void>> Run();
  // A cluster that no table in memory names any more.
  void Free(uint64_t offset, uint64_t clusters) { freed_.push_back({offset, clusters}); }
  // Whether tables are changed and not yet durable, or clusters still to be given back.
  bool dirty() const;
  // Waits until what was given up before the call is given back, as far as it is.
  device::Task<Result<void>> Settle();
  // Waits until nothing is being given back.
  device::Task<Result<void>> Rest();

  // While somebody holds one, no cluster that it may have seen in a table is given back.
  class Reader {
   public:
    explicit Reader(Checkpointer& owner) : owner_(owner), epoch_(owner.Enter()) {}
    ~Reader() { owner_.Leave(epoch_); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    Checkpointer& owner_;
    const uint64_t epoch_;
  };
  uint64_t Enter();
  void Leave(uint64_t epoch);

 private:
  struct Taken;

  device::Task<Result<void>> RunOne();
  Taken Take();
  device::Task<Result<void>> Write(Taken& taken);
  device::Task<Result<void>> WriteSlices(const Taken& taken, TableKind kind);
  device::Task<Result<void>> WriteSectors(const WholeTable& table, const std::vector<uint64_t>& sectors,
                                          const Buffer& bytes);
  device::Task<Result<void>> FlushFile();
  device::Spawned GiveBack(std::vector<Freed> freed, uint64_t epoch);

  ImageState& state_;
  const Release release_;

  bool running_ = false;
  uint64_t begun_ = 0;
  uint64_t ended_ = 0;
  uint64_t last_good_ = 0;
  Error last_error_;
  device::WaitList ended_list_;

  std::vector<Freed> freed_;
  uint64_t first_epoch_ = 0;         // of the counts below
  std::deque<uint32_t> readers_{0};  // of each epoch; the last is the present one
  device::WaitList epochs_changed_;
  uint32_t giving_back_ = 0;
};

}  // namespace bulkhead::qcow2
