// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/vcpu_thread.h"

#include <pthread.h>

namespace bulkhead::runner {

void Gate::Open() {
  std::lock_guard lock(mutex_);
  closed_ = false;
  changed_.notify_all();
}

void Gate::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

void Gate::Pass() {
  std::unique_lock lock(mutex_);
  if (!closed_) return;
  ++waiting_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !closed_; });
  --waiting_;
}

void Gate::Stay() {
  std::unique_lock lock(mutex_);
  ++waiting_;
  changed_.notify_all();
  for (;;) changed_.wait(lock);
}

void Gate::AwaitWaiting(uint32_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_ == count; });
}

VcpuThread::VcpuThread(uint32_t index, std::unique_ptr<Vcpu> vcpu, Router& router, Gate& gate, StopHandler stopped)
    : vcpu_(std::move(vcpu)), thread_([this, index, &router, &gate, stopped = std::move(stopped)] {
        // By itself: naming another thread needs /proc.
        ::pthread_setname_np(::pthread_self(), ("vcpu" + std::to_string(index)).c_str());
        Run(router, gate, stopped);
      }) {
  thread_.detach();
}

void VcpuThread::Run(Router& router, Gate& gate, const StopHandler& stopped) {
  vcpu_->Bind();
  gate.Pass();
  for (;;) {
    const Exit exit = vcpu_->Run();
    if (const auto* pio = std::get_if<PioExit>(&exit)) {
      router.Pio(*pio);
    } else if (const auto* mmio = std::get_if<MmioExit>(&exit)) {
      router.Mmio(*mmio);
    } else if (!std::holds_alternative<InterruptedExit>(exit)) {
      // The broker ends or resets the VM; this vCPU's part in it is over. The thread stays: its end would take system
      // calls that nothing else here needs.
      stopped(exit);
      gate.Stay();
    }
    if (gate.closed()) gate.Pass();
  }
}

}  // namespace bulkhead::runner
