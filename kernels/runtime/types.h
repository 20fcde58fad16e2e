// The storage types of tensors by number, so that a function of the library can be called for any of them.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include "simd.h"

namespace jepa_fast {

// float32 0, bfloat16 1, float16 2
inline int64_t type_number(tvm::ffi::TensorView tensor) {
  const DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 32) return 0;
  return type.code == kDLBfloat ? 1 : 2;
}

// Calls body with a value of the storage type that has this number.
template <typename Body>
JEPA_FAST_INLINE void with_type(int64_t number, const Body& body) {
  switch (number) {
    case 0: return body(float{});
    case 1: return body(bfloat16{});
    default: return body(float16{});
  }
}

}  // namespace jepa_fast
