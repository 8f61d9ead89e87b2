// Inner products and norms of pairs of feature matrices, by library GEMMs (a whole device works on each; the one block
// per problem of the sinkhorn kernels could not keep up), written straight into one stack for all pairs.
#include "sinkhorn.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

namespace d2ops {
namespace {

constexpr const char* kOp = "sinkhorn_divergence";

void check_gram(at::TensorList x, at::TensorList y) {
  TORCH_CHECK_VALUE(x.size() == y.size(), kOp, ": x holds ", x.size(), " tensors and y ", y.size(),
                    "; expected equally many.");
  for (size_t i = 0; i < x.size(); ++i) {
    check_same_dtype(kOp, {{"x", &x[0]}, {"y", &y[i]}, {"x", &x[i]}});
    check_same_device(kOp, {{"x", &x[0]}, {"y", &y[i]}, {"x", &x[i]}});
    TORCH_CHECK_VALUE(x[i].dim() >= 2, kOp, ": x has shape ", x[i].sizes(),
                      "; expected (..., C1, k): channels and positions.");
    TORCH_CHECK_VALUE(y[i].dim() == x[i].dim() && y[i].size(-1) == x[i].size(-1) &&
                          y[i].sizes().slice(0, y[i].dim() - 2) == x[i].sizes().slice(0, x[i].dim() - 2),
                      kOp, ": y has shape ", y[i].sizes(), " and x ", x[i].sizes(),
                      "; expected (..., C2, k) and (..., C1, k), alike but for the channels.");
    TORCH_CHECK_VALUE(x[i].sizes().slice(0, x[i].dim() - 1) == x[0].sizes().slice(0, x[0].dim() - 1) &&
                          y[i].sizes().slice(0, y[i].dim() - 1) == y[0].sizes().slice(0, y[0].dim() - 1),
                      kOp, ": pair ", i, " has shapes ", x[i].sizes(), " and ", y[i].sizes(), ", pair 0 has ",
                      x[0].sizes(), " and ", y[0].sizes(), "; they may differ in the last dimension alone.");
  }
}

Tensor batch(const Tensor& t) {
  return t.reshape({c10::multiply_integers(t.sizes().slice(0, t.dim() - 2)), t.size(-2), t.size(-1)});
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_gram(at::TensorList x, at::TensorList y) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  check_gram(x, y);
  auto shape_x = x[0].sizes().vec(), shape_y = y[0].sizes().vec();
  shape_x.back() = shape_y[shape_y.size() - 2];  // (..., C1, C2)
  shape_y.pop_back();
  const auto stack = [&](std::vector<int64_t> shape) {
    shape.insert(shape.begin(), static_cast<int64_t>(x.size()));
    return at::empty(shape, x[0].options());
  };
  const Tensor gram = stack(shape_x), norm_y = stack(shape_y);
  shape_x.pop_back();
  const Tensor norm_x = stack(shape_x);
  for (size_t i = 0; i < x.size(); ++i) {
    Tensor product = batch(gram[i]), length_x = norm_x[i], length_y = norm_y[i];
    at::bmm_out(product, batch(x[i]), batch(y[i]).transpose(1, 2));
    at::linalg_vector_norm_out(length_x, x[i], 2, at::IntArrayRef{-1});
    at::linalg_vector_norm_out(length_y, y[i], 2, at::IntArrayRef{-1});
  }
  if ((gram.is_cpu() || checks_cuda_values()) && !std::isfinite((norm_x.sum() + norm_y.sum()).item<double>())) {
    for (size_t i = 0; i < x.size(); ++i) raise_if_not_finite(kOp, {{"x", &x[i]}, {"y", &y[i]}});
  }
  return {gram, norm_x, norm_y};
}

// d_gram * other + d_norm x / |x|. A norm below the floor has no gradient: the clamp only avoids 0 / 0.
Tensor gradient(const Tensor& x, const Tensor& norm, const Tensor& d_norm, const Tensor& d_gram, const Tensor& other) {
  const Tensor along = (d_norm / norm.clamp_min(kNormFloor)).unsqueeze(-1);
  const Tensor out = at::mul(x, along).contiguous();
  batch(out).baddbmm_(batch(d_gram), batch(other));
  return out;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> sinkhorn_gram_backward(
    const Tensor& grad_gram, const Tensor& grad_norm_x, const Tensor& grad_norm_y, at::TensorList x, at::TensorList y,
    const Tensor& norm_x, const Tensor& norm_y, bool needs_x, bool needs_y) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  check_gram(x, y);
  std::vector<Tensor> grad_x, grad_y;
  for (size_t i = 0; i < x.size(); ++i) {
    const Tensor d_gram = grad_gram[i];
    if (needs_x) grad_x.push_back(gradient(x[i], norm_x[i], grad_norm_x[i], d_gram, y[i]));
    if (needs_y) grad_y.push_back(gradient(y[i], norm_y[i], grad_norm_y[i], d_gram.transpose(-2, -1), x[i]));
  }
  return {grad_x, grad_y};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def("sinkhorn_gram(Tensor[] x, Tensor[] y) -> (Tensor gram, Tensor norm_x, Tensor norm_y)");
  m.def(
      "sinkhorn_gram_backward(Tensor grad_gram, Tensor grad_norm_x, Tensor grad_norm_y, Tensor[] x, Tensor[] y, "
      "Tensor norm_x, Tensor norm_y, bool needs_x, bool needs_y) -> (Tensor[], Tensor[])");
}

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("sinkhorn_gram", sinkhorn_gram);
  m.impl("sinkhorn_gram_backward", sinkhorn_gram_backward);
}

// Nothing but library calls, so the same function; it needs no nvcc.
TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("sinkhorn_gram", sinkhorn_gram);
  m.impl("sinkhorn_gram_backward", sinkhorn_gram_backward);
}

}  // namespace d2ops
