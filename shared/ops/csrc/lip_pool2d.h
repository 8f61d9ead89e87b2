// lip_pool2d: what its CPU and CUDA kernels share.
#pragma once

#include "common.h"

#include <c10/util/ArrayRef.h>

#include <array>
#include <optional>
#include <tuple>

namespace d2ops {

// Input (N, C, H, W), window and output (N, C, OH, OW). `gate` is 0 where the logits come as they are.
struct LipShape {
  int64_t n, c, h, w;
  int64_t kh, kw, sh, sw, ph, pw;
  int64_t oh, ow;
  bool channels_last;
  double gate;

  int64_t outputs() const {
    return n * c * oh * ow;
  }
};

// Raises the sentence for whatever is wrong with the arguments. Reads sizes only.
LipShape lip_pool2d_check(const Tensor& x, const Tensor& logit, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                          c10::IntArrayRef padding, std::optional<double> gate);

// The same for the backward op: `grad` and `y` have the output's shape, and `lse` too unless it was not kept.
LipShape lip_pool2d_check_backward(const Tensor& grad, const Tensor& x, const Tensor& logit, const Tensor& y,
                                   const Tensor& lse, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                                   c10::IntArrayRef padding, std::optional<double> gate);

// x, or a copy of it, in the layout that the kernels run in: channels_last where x is, contiguous otherwise.
Tensor lip_pool2d_layout(const Tensor& x, const LipShape& shape);

// Uninitialised (y, lse) of the forward op. lse is empty where it is not kept.
std::tuple<Tensor, Tensor> lip_pool2d_outputs(const Tensor& x, const LipShape& shape, bool keep_lse);

// Uninitialised gradients of x and logit. One that is not needed is empty.
std::tuple<Tensor, Tensor> lip_pool2d_gradients(const Tensor& x, const LipShape& shape, std::array<bool, 2> needs);

}  // namespace d2ops
