// What the CPU and the CUDA kernels of soft_roi_pool share: sizes and checks.
#pragma once

#include "common.h"

#include <optional>

namespace d2ops {

struct RoiSizes {
  int64_t images, groups, channels, maps, positions;  // N, L, C', D, H * W
};

RoiSizes check_soft_roi_pool(const Tensor& scores, const Tensor& values, double temperature,
                             const std::optional<Tensor>& mask);
RoiSizes check_soft_roi_pool_backward(const Tensor& grad_pooled, const std::optional<Tensor>& grad_maps,
                                      const Tensor& scores, const Tensor& values, const std::optional<Tensor>& mask,
                                      const Tensor& per_map, const Tensor& stats, double temperature);

}  // namespace d2ops
