// What the CPU and the CUDA kernels of render_label_maps share: checks, and arithmetic that must agree to the bit.
#pragma once

#include "common.h"

#include <c10/macros/Macros.h>

#include <vector>

namespace d2ops {

// Objects of `render_label_maps`, checked and contiguous. intensities has the dtype of boxes; masks is empty or has one
// an object.
struct LabelObjects {
  Tensor boxes, slots, intensities;
  std::vector<Tensor> masks;
};

LabelObjects check_label_maps(const Tensor& boxes, const Tensor& slots, const Tensor& intensities, at::TensorList masks,
                              int64_t planes, int64_t height, int64_t width, at::ScalarType dtype);

// One box along one axis. The only product that a sum follows is by 0.5, which is exact: contracting it changes
// nothing, and every value is what the formula written with full canvases gives.
template <typename acc_t>
struct Extent {
  acc_t centre, length;

  C10_HOST_DEVICE Extent(acc_t low, acc_t high) : centre((low + high) * acc_t(0.5)), length(high - low) {}

  // (u - centre) / length: rises with the index, also as rounded. The pyramid is at least 0.5 exactly where this lies
  // within [-0.5, 0.5].
  C10_HOST_DEVICE acc_t at(int64_t index, acc_t offset) const {
    const acc_t distance = acc_t(index) + offset - centre;
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(acc_t) == 4) {
      return __fdiv_rn(distance, length);  // rounded to nearest under every compiler flag
    }
#endif
    return distance / length;
  }
};

}  // namespace d2ops
