// What the kernels of sinkhorn share: sizes, checks, and the layout of the scaling vectors.
#pragma once

#include "common.h"

#include <optional>
#include <vector>

namespace d2ops {

// A channel with a smaller norm counts as this long: a dead channel gives a finite cost and finite gradients.
constexpr double kNormFloor = 1e-6;

// N problems of rows x cols. `saved` scaling vectors each: per iteration a (cols) and then b (rows), or the last alone.
struct SinkhornSizes {
  int64_t problems, rows, cols, iters, saved;

  constexpr int64_t duals() const { return rows + cols; }  // length of one saved row
};

SinkhornSizes check_sinkhorn(const Tensor& cost, const std::optional<Tensor>& norm_x,
                             const std::optional<Tensor>& norm_y, double eps, int64_t iters, bool unroll);

SinkhornSizes check_sinkhorn_backward(const Tensor& grad, const Tensor& cost, const std::optional<Tensor>& norm_x,
                                      const std::optional<Tensor>& norm_y, const Tensor& scalings, double eps,
                                      bool unroll);

// Shape of the scaling vectors: (..., saved, cols + rows).
std::vector<int64_t> scalings_shape(const Tensor& cost, const SinkhornSizes& sizes);

// Says why a loss is NaN. Returns where the inputs are fine and so is the loss.
void explain_nan(const Tensor& loss, const Tensor& cost, double eps, bool log_domain, bool has_norms);

// nullptr for a tensor that is not given
template <typename T>
inline const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

}  // namespace d2ops
