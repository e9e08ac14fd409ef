// SPDX-License-Identifier: Apache-2.0
// Coroutines of one thread: a Task runs when it is awaited or spawned, suspends where it waits for I/O or for another
// task, and is resumed from inside of a completion. Nothing here locks; everything belongs to the thread whose ring
// completes the I/O. Frames come from the heap, so whoever takes requests bounds how many tasks there are.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "ipc/result.h"

namespace bulkhead::device {

// A computation that gives one T. Awaited exactly once, by its owner. An exception in it ends the process: after
// lock-down errors are values.
template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type {
    std::optional<T> value;
    std::coroutine_handle<> continuation;

    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    auto final_suspend() noexcept {
      struct Final {
        bool await_ready() noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> done) noexcept {
          return done.promise().continuation;
        }
        void await_resume() noexcept {}
      };
      return Final{};
    }
    template <typename U>
    void return_value(U&& result) {
      value.emplace(std::forward<U>(result));
    }
    void unhandled_exception() noexcept { std::terminate(); }
  };

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
    handle_.promise().continuation = waiter;
    return handle_;
  }
  T await_resume() { return std::move(*handle_.promise().value); }

 private:
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}

  std::coroutine_handle<promise_type> handle_;
};

// The outermost coroutine: starts at once, and its frame goes when it has run to its end.
struct Spawned {
  struct promise_type {
    Spawned get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};

// Runs a task of which nobody waits for the end; `finished` is called with its value.
template <typename T, typename Finished>
Spawned Spawn(Task<T> task, Finished finished) {
  finished(co_await task);
}

// Tasks that wait for something to change. Whoever is woken looks again at what it waits for: another may have been
// faster.
class WaitList {
 public:
  struct Waiter {
    WaitList& list;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) { list.waiting_.push_back(waiter); }
    void await_resume() const noexcept {}
  };
  WaitList() = default;
  WaitList(const WaitList&) = delete;
  WaitList& operator=(const WaitList&) = delete;
  // Tasks that still wait when the list goes are ones whose image goes too: nothing is in flight then.

  Waiter Wait() { return {*this}; }
  // Runs each task that waits now until it waits again. This list may be gone when the call returns.
  void WakeAll() {
    std::deque<std::coroutine_handle<>> woken;
    woken.swap(waiting_);
    for (const auto& waiter : woken) waiter.resume();
  }
  void WakeOne() {
    if (waiting_.empty()) return;
    const auto waiter = waiting_.front();
    waiting_.pop_front();
    waiter.resume();
  }
  bool empty() const { return waiting_.empty(); }

 private:
  std::deque<std::coroutine_handle<>> waiting_;
};

// Runs tasks side by side; Wait gives the first error. Awaited once, after the last Add, also if Add was never called.
class TaskGroup {
 public:
  TaskGroup() = default;
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  void Add(Task<Result<void>> task) {
    ++running_;
    Spawn(std::move(task), [this](Result<void> result) {
      if (!result.ok() && result_.ok()) result_ = std::move(result);
      if (--running_ == 0 && waiter_) std::exchange(waiter_, nullptr).resume();
    });
  }
  bool await_ready() const noexcept { return running_ == 0; }
  void await_suspend(std::coroutine_handle<> waiter) noexcept { waiter_ = waiter; }
  Result<void> await_resume() { return std::move(result_); }

 private:
  size_t running_ = 0;
  Result<void> result_;
  std::coroutine_handle<> waiter_;
};

}  // namespace bulkhead::device
