// What all ops share: the sentence for NaN, and the choice of types.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace d2ops {

using at::Tensor;
using NamedTensor = std::pair<const char*, const Tensor*>;

// float, double, half and bfloat16: what every op takes. Sums are in at::opmath_type<scalar_t>: float, or double for double.
#define D2OPS_DISPATCH(TYPE, NAME, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::ScalarType::Half, at::ScalarType::BFloat16, TYPE, NAME, __VA_ARGS__)

// The CPU kernels see a NaN for free. On CUDA looking for one stalls the stream, so it is asked for.
inline bool checks_cuda_values() {
  static const bool on = [] {
    const char* value = std::getenv("SHARED_OPS_CHECK");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return on;
}

// Called once an output holds a NaN: blames the input that has it. Returns where no input is at fault.
inline void raise_if_not_finite(const char* op, std::initializer_list<NamedTensor> inputs) {
  for (const auto& [name, tensor] : inputs) {
    TORCH_CHECK_VALUE(tensor->isfinite().all().item<bool>(), op, ": ", name, " of shape ", tensor->sizes(),
                      " holds NaN or infinite values; it must be finite.");
  }
}

inline void check_same_device(const char* op, std::initializer_list<NamedTensor> inputs) {
  const auto& [first_name, first] = *inputs.begin();
  for (const auto& [name, tensor] : inputs) {
    TORCH_CHECK_VALUE(tensor->device() == first->device(), op, ": ", name, " is on ", tensor->device(), " and ",
                      first_name, " on ", first->device(), "; they must be on one device.");
  }
}

inline void check_floating(const char* op, std::initializer_list<NamedTensor> inputs) {
  for (const auto& [name, tensor] : inputs) {
    TORCH_CHECK_TYPE(at::isFloatingType(tensor->scalar_type()), op, ": ", name, " has dtype ", tensor->scalar_type(),
                     "; expected float32, float64, float16 or bfloat16.");
  }
}

inline void check_same_dtype(const char* op, std::initializer_list<NamedTensor> inputs) {
  check_floating(op, inputs);
  const auto& [first_name, first] = *inputs.begin();
  for (const auto& [name, tensor] : inputs) {
    TORCH_CHECK_TYPE(tensor->scalar_type() == first->scalar_type(), op, ": ", name, " has dtype ",
                     tensor->scalar_type(), " and ", first_name, " has ", first->scalar_type(),
                     "; they must have one dtype.");
  }
}

}  // namespace d2ops
