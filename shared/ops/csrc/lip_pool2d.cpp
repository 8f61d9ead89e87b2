// Local importance-based pooling (arXiv:1908.04156): the schema and the checks. The CPU kernels: lip_pool2d_cpu.cpp.

#include "lip_pool2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

namespace d2ops {

namespace {

void check_pair(const char* name, c10::IntArrayRef values, int64_t smallest) {
  TORCH_CHECK_VALUE(values.size() == 2, "lip_pool2d: ", name, " is ", values, "; expected one or two integers.");
  for (const int64_t value : values) {
    TORCH_CHECK_VALUE(value >= smallest, "lip_pool2d: ", name, " is ", values, "; expected at least ", smallest, ".");
  }
}

void check_window(c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding) {
  check_pair("kernel_size", kernel, 1);
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  for (const int i : {0, 1}) {
    TORCH_CHECK_VALUE(kernel[i] >= stride[i], "lip_pool2d: kernel_size is ", kernel, " and stride ", stride,
                      "; the window must be at least as large as the stride, or inputs would be skipped.");
    TORCH_CHECK_VALUE(2 * padding[i] <= kernel[i], "lip_pool2d: padding is ", padding, " and kernel_size ", kernel,
                      "; padding must be at most half the kernel size, so that each window holds an input.");
  }
}

void check_output_like(const char* name, const Tensor& tensor, const LipShape& s) {
  const std::array<int64_t, 4> expected = {s.n, s.c, s.oh, s.ow};
  TORCH_CHECK_VALUE(tensor.sizes() == c10::IntArrayRef(expected), "lip_pool2d_backward: ", name, " has shape ",
                    tensor.sizes(), "; expected the output's, ", c10::IntArrayRef(expected), ".");
}

at::MemoryFormat memory_format(const LipShape& shape) {
  return shape.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace

LipShape lip_pool2d_check(const Tensor& x, const Tensor& logit, c10::IntArrayRef kernel, c10::IntArrayRef stride,
                          c10::IntArrayRef padding, std::optional<double> gate) {
  TORCH_CHECK_VALUE(x.dim() == 4, "lip_pool2d: x has shape ", x.sizes(), "; expected (N, C, H, W).");
  TORCH_CHECK_VALUE(logit.sizes() == x.sizes(), "lip_pool2d: logit has shape ", logit.sizes(), " and x ", x.sizes(),
                    "; expected one logit per element of x.");
  check_same_device("lip_pool2d", {{"x", &x}, {"logit", &logit}});
  check_same_dtype("lip_pool2d", {{"x", &x}, {"logit", &logit}});
  check_window(kernel, stride, padding);
  TORCH_CHECK_VALUE(!gate || (std::isfinite(*gate) && *gate > 0), "lip_pool2d: gate is ", *gate,
                    "; expected a positive, finite number, or None for logits without a gate.");
  LipShape s{x.size(0), x.size(1), x.size(2), x.size(3), kernel[0], kernel[1], stride[0], stride[1],
             padding[0], padding[1], 0, 0, false, gate.value_or(0.0)};
  TORCH_CHECK_VALUE(s.h >= 1 && s.w >= 1 && s.h + 2 * s.ph >= s.kh && s.w + 2 * s.pw >= s.kw,
                    "lip_pool2d: x has shape ", x.sizes(), ", too small for kernel_size ", kernel, " with padding ",
                    padding,
                    ": the output would be empty.");
  s.oh = (s.h + 2 * s.ph - s.kh) / s.sh + 1;
  s.ow = (s.w + 2 * s.pw - s.kw) / s.sw + 1;
  s.channels_last = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return s;
}

LipShape lip_pool2d_check_backward(const Tensor& grad, const Tensor& x, const Tensor& logit, const Tensor& y,
                                   const Tensor& lse, c10::IntArrayRef kernel, c10::IntArrayRef stride,
                                   c10::IntArrayRef padding, std::optional<double> gate) {
  const LipShape s = lip_pool2d_check(x, logit, kernel, stride, padding, gate);
  check_output_like("grad", grad, s);
  check_output_like("y", y, s);
  check_same_device("lip_pool2d_backward", {{"x", &x}, {"grad", &grad}, {"y", &y}, {"lse", &lse}});
  check_same_dtype("lip_pool2d_backward", {{"x", &x}, {"grad", &grad}, {"y", &y}});
  TORCH_CHECK_VALUE(lse.numel() == s.outputs(), "lip_pool2d_backward: lse has shape ", lse.sizes(),
                    "; the forward op was called with keep_lse=False.");
  check_output_like("lse", lse, s);
  TORCH_CHECK_TYPE(lse.scalar_type() == at::toOpMathType(x.scalar_type()), "lip_pool2d_backward: lse has dtype ",
                   lse.scalar_type(), "; expected ", at::toOpMathType(x.scalar_type()), ".");
  return s;
}

Tensor lip_pool2d_layout(const Tensor& x, const LipShape& shape) {
  return x.contiguous(memory_format(shape));
}

std::tuple<Tensor, Tensor> lip_pool2d_outputs(const Tensor& x, const LipShape& s, bool keep_lse) {
  const auto lse_options = x.options().dtype(at::toOpMathType(x.scalar_type()));
  Tensor y = at::empty({s.n, s.c, s.oh, s.ow}, x.options(), memory_format(s));
  if (!keep_lse) {
    return {y, at::empty({0}, lse_options)};
  }
  return {y, at::empty({s.n, s.c, s.oh, s.ow}, lse_options, memory_format(s))};
}

std::tuple<Tensor, Tensor> lip_pool2d_gradients(const Tensor& x, const LipShape& s, std::array<bool, 2> needs) {
  const auto make = [&](bool needed) {
    return needed ? at::empty(x.sizes(), x.options(), memory_format(s)) : at::empty({0}, x.options());
  };
  return {make(needs[0]), make(needs[1])};
}

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def(
      "lip_pool2d(Tensor x, Tensor logit, int[2] kernel_size, int[2] stride, int[2] padding, float? gate, "
      "bool keep_lse) -> (Tensor y, Tensor lse)");
  m.def(
      "lip_pool2d_backward(Tensor grad, Tensor x, Tensor logit, Tensor y, Tensor lse, int[2] kernel_size, "
      "int[2] stride, int[2] padding, float? gate, bool[2] needs) -> (Tensor grad_x, Tensor grad_logit)");
}

}  // namespace d2ops
