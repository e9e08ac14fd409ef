// SPDX-License-Identifier: Apache-2.0
// Things of which each is used by one task at a time; whoever finds none waits. Image's thread.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "device-procs/common/block/task.h"

namespace bulkhead::device {

template <typename T>
class Stock {
 public:
  template <typename... Arguments>
  explicit Stock(size_t count, const Arguments&... arguments) {
    for (; count != 0; --count) free_.push_back(std::make_unique<T>(arguments...));
  }
  Stock(const Stock&) = delete;
  Stock& operator=(const Stock&) = delete;

  // One of them, until this goes. Whoever has one does not ask for another.
  class Taken {
   public:
    Taken(Stock& stock, std::unique_ptr<T> thing) : stock_(stock), thing_(std::move(thing)) {}
    Taken(Taken&&) noexcept = default;
    Taken& operator=(Taken&&) = delete;
    ~Taken() {
      if (thing_) stock_.PutBack(std::move(thing_));
    }
    T* operator->() const { return thing_.get(); }

   private:
    Stock& stock_;
    std::unique_ptr<T> thing_;
  };

  Task<Taken> Take() {
    while (free_.empty()) co_await returned_.Wait();
    std::unique_ptr<T> thing = std::move(free_.back());
    free_.pop_back();
    co_return Taken(*this, std::move(thing));
  }

 private:
  void PutBack(std::unique_ptr<T> thing) {
    free_.push_back(std::move(thing));
    returned_.WakeOne();
  }

  std::vector<std::unique_ptr<T>> free_;
  WaitList returned_;
};

}  // namespace bulkhead::device
