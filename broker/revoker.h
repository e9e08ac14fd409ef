// SPDX-License-Identifier: Apache-2.0
// What RPC servers hold of the object whose calls they take. A call that has come in is carried out even if its
// connection ends meanwhile (RPC cancels none that did not allow it), so a server can live longer than its object, and
// whoever is at the other end decides whether one does. Broker, main thread.
#pragma once

#include <memory>

#include "ipc/rpc.h"

namespace bulkhead::broker {

template <typename T>
class Revocable {
 public:
  explicit Revocable(std::shared_ptr<T*> object) : object_(std::move(object)) {}
  // Throws Failure, which the caller of the RPC gets, if the object is gone.
  T& operator*() const {
    if (*object_ == nullptr) throw Failure("it has ended");
    return **object_;
  }
  T* operator->() const { return &**this; }
  // Whether it is there.
  explicit operator bool() const { return *object_ != nullptr; }

 private:
  std::shared_ptr<T*> object_;
};

// A member of the object, or declared right after it.
template <typename T>
class Revoker {
 public:
  explicit Revoker(T& object) : object_(std::make_shared<T*>(&object)) {}
  ~Revoker() { *object_ = nullptr; }
  Revoker(const Revoker&) = delete;
  Revoker& operator=(const Revoker&) = delete;

  Revocable<T> Get() const { return Revocable<T>(object_); }

 private:
  std::shared_ptr<T*> object_;
};

}  // namespace bulkhead::broker
