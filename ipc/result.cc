// SPDX-License-Identifier: Apache-2.0
#include "ipc/result.h"

#include <cstring>

namespace bulkhead {

Error ErrnoError(int code, const std::string& what) { return Error{code, what + ": " + std::strerror(code)}; }

void ThrowErrno(const std::string& what) { throw FatalError(ErrnoError(errno, what)); }

}  // namespace bulkhead
