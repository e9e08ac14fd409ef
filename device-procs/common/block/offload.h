// SPDX-License-Identifier: Apache-2.0
// Computations that take long, handed from an image's thread to others, so that it meanwhile serves what does not wait
// for them. Image's thread, but for Compute: that runs on any, and touches only memory that nobody else does until it
// has completed. What it computes on may be hostile.
#pragma once

#include <coroutine>
#include <optional>
#include <type_traits>
#include <utility>

namespace bulkhead::device {

class Offload {
 public:
  class Job {
   public:
    // Once, on any thread. Throws nothing.
    virtual void Compute() = 0;
    // On the thread that started it, possibly inside of the call that did.
    virtual void Completed() = 0;

   protected:
    ~Job() = default;
  };

  virtual ~Offload() = default;
  // The job stays valid until it has completed. They are begun in order.
  virtual void Start(Job& job) = 0;
  // How many are computed at one time.
  virtual unsigned width() const = 0;
};

// For those who have no other threads: computes inside of the call.
class InlineOffload final : public Offload {
 public:
  void Start(Job& job) override {
    job.Compute();
    job.Completed();
  }
  unsigned width() const override { return 1; }
};

// Awaits one computation; the value is what it gives.
template <typename Work>
class Offloaded final : public Offload::Job {
 public:
  Offloaded(Offload& offload, Work work) : offload_(offload), work_(std::move(work)) {}

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    offload_.Start(*this);
    suspended_ = !completed_;
    return suspended_;
  }
  auto await_resume() { return std::move(*value_); }

  void Compute() override { value_.emplace(work_()); }
  void Completed() override {
    completed_ = true;
    if (suspended_) waiter_.resume();
  }

 private:
  Offload& offload_;
  Work work_;
  std::optional<std::invoke_result_t<Work&>> value_;
  std::coroutine_handle<> waiter_;
  bool completed_ = false;
  bool suspended_ = false;
};

template <typename Work>
Offloaded<Work> ComputeOn(Offload& offload, Work work) {
  return {offload, std::move(work)};
}

}  // namespace bulkhead::device
