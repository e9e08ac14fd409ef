// SPDX-License-Identifier: Apache-2.0
// The thread that runs one vCPU: waits for the start, runs the guest, hands its exits to the router.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "vcpu-runner/cpu/hypervisor.h"
#include "vcpu-runner/router.h"

namespace bulkhead::runner {

// Whether vCPUs run; shared by all vCPU threads. Closed at first.
class Gate {
 public:
  void Open();
  void Close();
  // vCPU thread: returns when the gate is open.
  void Pass();
  // vCPU thread: waits here for good.
  void Stay();
  // Main thread: returns when `count` threads wait, at the closed gate or for good.
  void AwaitWaiting(uint32_t count);
  bool closed() const { return closed_.load(std::memory_order_relaxed); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> closed_ = true;
  uint32_t waiting_ = 0;
};

// How a vCPU ended the VM; called once at most per thread.
using StopHandler = std::function<void(const Exit& exit)>;

class VcpuThread {
 public:
  // Starts the thread, which waits at the gate. All references outlive it; threads end with the process.
  VcpuThread(uint32_t index, std::unique_ptr<Vcpu> vcpu, Router& router, Gate& gate, StopHandler stopped);

  Vcpu& vcpu() { return *vcpu_; }

 private:
  void Run(Router& router, Gate& gate, const StopHandler& stopped);

  std::unique_ptr<Vcpu> vcpu_;
  std::thread thread_;
};

}  // namespace bulkhead::runner
