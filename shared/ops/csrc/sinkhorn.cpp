// sinkhorn: schema, checks and the CPU kernels (one problem per thread at a time). The solver is in sinkhorn_cpu.h.
#include "sinkhorn_log_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <torch/library.h>

namespace d2ops {

SinkhornSizes check_sinkhorn(const Tensor& cost, const std::optional<Tensor>& norm_x,
                             const std::optional<Tensor>& norm_y, double eps, int64_t iters, bool unroll) {
  TORCH_CHECK_VALUE(cost.dim() >= 2, "sinkhorn: cost has shape ", cost.sizes(),
                    "; expected (..., C1, C2): a matrix for each problem.");
  const auto lead = cost.sizes().slice(0, cost.dim() - 2);
  const int64_t rows = cost.size(-2), cols = cost.size(-1);
  TORCH_CHECK_VALUE(rows > 0 && cols > 0, "sinkhorn: cost has shape ", cost.sizes(),
                    "; expected (..., C1, C2) with C1 and C2 of at least 1.");
  TORCH_CHECK_TYPE(cost.scalar_type() == at::kFloat || cost.scalar_type() == at::kDouble,
                   "sinkhorn: cost has dtype ", cost.scalar_type(),
                   "; expected float32, float64, float16 or bfloat16 (16-bit values are computed in float32).");
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps > 0, "sinkhorn: eps is ", eps, "; expected a positive number.");
  TORCH_CHECK_VALUE(iters >= 1, "sinkhorn: iters is ", iters, "; expected at least 1.");
  TORCH_CHECK_VALUE(norm_x.has_value() == norm_y.has_value(),
                    "sinkhorn: one of norm_x and norm_y is given; expected both or none.");
  if (norm_x) {
    check_same_dtype("sinkhorn", {{"cost", &cost}, {"norm_x", &*norm_x}, {"norm_y", &*norm_y}});
    check_same_device("sinkhorn", {{"cost", &cost}, {"norm_x", &*norm_x}, {"norm_y", &*norm_y}});
    const auto shape_x = cost.sizes().slice(0, cost.dim() - 1);
    TORCH_CHECK_VALUE(norm_x->sizes() == shape_x, "sinkhorn: norm_x has shape ", norm_x->sizes(), "; expected ",
                      shape_x, ", one norm for each row of cost ", cost.sizes(), ".");
    auto shape_y = lead.vec();
    shape_y.push_back(cols);
    TORCH_CHECK_VALUE(norm_y->sizes() == at::IntArrayRef(shape_y), "sinkhorn: norm_y has shape ", norm_y->sizes(),
                      "; expected ", at::IntArrayRef(shape_y), ", one norm for each column of cost ", cost.sizes(),
                      ".");
  }
  return {c10::multiply_integers(lead), rows, cols, iters, unroll ? iters : 1};
}

SinkhornSizes check_sinkhorn_backward(const Tensor& grad, const Tensor& cost, const std::optional<Tensor>& norm_x,
                                      const std::optional<Tensor>& norm_y, const Tensor& scalings, double eps,
                                      bool unroll) {
  TORCH_CHECK_VALUE(scalings.dim() >= 2, "sinkhorn_backward: scalings has shape ", scalings.sizes(),
                    "; expected (..., iterations, C2 + C1).");
  const auto sizes = check_sinkhorn(cost, norm_x, norm_y, eps, scalings.size(-2), unroll);
  const auto expected = scalings_shape(cost, sizes);
  TORCH_CHECK_VALUE(scalings.sizes() == at::IntArrayRef(expected), "sinkhorn_backward: scalings has shape ",
                    scalings.sizes(), "; expected ", at::IntArrayRef(expected), ".");
  TORCH_CHECK_VALUE(grad.sizes() == cost.sizes().slice(0, cost.dim() - 2), "sinkhorn_backward: grad has shape ",
                    grad.sizes(), "; expected ", cost.sizes().slice(0, cost.dim() - 2), ", one value a problem.");
  check_same_dtype("sinkhorn_backward", {{"cost", &cost}, {"grad", &grad}, {"scalings", &scalings}});
  check_same_device("sinkhorn_backward", {{"cost", &cost}, {"grad", &grad}, {"scalings", &scalings}});
  return sizes;
}

std::vector<int64_t> scalings_shape(const Tensor& cost, const SinkhornSizes& sizes) {
  auto shape = cost.sizes().slice(0, cost.dim() - 2).vec();
  shape.push_back(sizes.saved);
  shape.push_back(sizes.duals());
  return shape;
}

void explain_nan(const Tensor& loss, const Tensor& cost, double eps, bool log_domain, bool has_norms) {
  if (loss.numel() == 0 || loss.isfinite().all().item<bool>()) return;
  raise_if_not_finite("sinkhorn", {{has_norms ? "cost (inner products)" : "cost", &cost}});
  TORCH_CHECK_VALUE(false, "sinkhorn: at eps ", eps, " a row or column of ",
                    log_domain ? "cost / eps leaves the range of " : "exp(-cost / eps) leaves the range of ",
                    cost.scalar_type(), log_domain ? "; use a larger eps." : "; use log_domain=True or a larger eps.");
}

namespace {

using sinkhorn_cpu::Cost;

template <typename T>
std::vector<T> inverse_norms(const T* norms, int64_t count) {
  std::vector<T> inverse(count);
  for (int64_t i = 0; i < count; ++i) inverse[i] = T(1) / std::max(norms[i], static_cast<T>(kNormFloor));
  return inverse;
}

// f(problem n, its cost) for every problem, in parallel. Norms are nullptr where `cost` holds costs.
template <typename T, typename F>
void each_problem(const Tensor& cost, const T* norm_x, const T* norm_y, const SinkhornSizes& sizes, double eps,
                  const F& f) {
  at::parallel_for(0, sizes.problems, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      Cost<T> problem{cost.const_data_ptr<T>() + n * sizes.rows * sizes.cols, nullptr, nullptr, sizes.rows, sizes.cols,
                      static_cast<T>(eps)};
      std::vector<T> inverse_x, inverse_y;
      if (norm_x != nullptr) {
        inverse_x = inverse_norms(norm_x + n * sizes.rows, sizes.rows);
        inverse_y = inverse_norms(norm_y + n * sizes.cols, sizes.cols);
        problem.inverse_x = inverse_x.data();
        problem.inverse_y = inverse_y.data();
      }
      f(n, problem);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_cpu_forward(const Tensor& cost_, const std::optional<Tensor>& norm_x_,
                                                        const std::optional<Tensor>& norm_y_, double eps,
                                                        int64_t iters, bool log_domain, bool unroll, bool with_plan) {
  const auto sizes = check_sinkhorn(cost_, norm_x_, norm_y_, eps, iters, unroll);
  const Tensor cost = cost_.contiguous();
  const auto norm_x = contiguous(norm_x_), norm_y = contiguous(norm_y_);
  const Tensor loss = at::empty(cost.sizes().slice(0, cost.dim() - 2), cost.options());
  const Tensor plan = with_plan ? at::empty(cost.sizes(), cost.options()) : at::empty({0}, cost.options());
  const Tensor scalings = at::empty(scalings_shape(cost, sizes), cost.options());
  // K: in the plan where one is wanted, otherwise one matrix a thread
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), sizes.problems), matrix = sizes.rows * sizes.cols;
  const Tensor scratch = with_plan ? plan : at::empty({threads, matrix}, cost.options());
  AT_DISPATCH_FLOATING_TYPES(cost.scalar_type(), "sinkhorn", [&] {
    scalar_t *out = loss.data_ptr<scalar_t>(), *saved = scalings.data_ptr<scalar_t>();
    scalar_t* k = scratch.data_ptr<scalar_t>();
    each_problem<scalar_t>(
        cost, pointer<scalar_t>(norm_x), pointer<scalar_t>(norm_y), sizes, eps,
        [&](int64_t n, const Cost<scalar_t>& problem) {
          const auto solve = log_domain ? sinkhorn_cpu::log_forward<scalar_t> : sinkhorn_cpu::forward<scalar_t>;
          out[n] = solve(problem, sizes, k + (with_plan ? n : at::get_thread_num()) * matrix,
                         saved + n * sizes.saved * sizes.duals(), with_plan);
        });
  });
  explain_nan(loss, cost, eps, log_domain, norm_x.has_value());
  return {loss, plan, scalings};
}

// dQ of one problem into k, then what it means for inner products and norms.
template <typename T>
void backward_problem(const Cost<T>& cost, const SinkhornSizes& sizes, bool log_domain, bool unroll, T grad,
                      const T* scalings, T* duals, T* k, T* grad_x, T* grad_y) {
  const int64_t cols = cost.cols;
  std::vector<T> buffer(sinkhorn_cpu::kRows * cols);
  const auto replay = log_domain ? sinkhorn_cpu::log_unroll<T> : sinkhorn_cpu::unroll<T>;
  if (unroll) replay(cost, sizes, grad, scalings, k, duals);
  if (grad_y != nullptr) std::fill_n(grad_y, cols, T(0));
  sinkhorn_cpu::each_row_block(cost.rows, [&](int64_t x, auto R) {
    const T* q[R];
    for (int r = 0; r < R; ++r) {
      q[r] = cost.row(x + r, buffer.data() + r * cols);
      if (unroll) continue;
      if (log_domain) sinkhorn_cpu::log_gibbs_row(q[r], cost.eps, cols, k + (x + r) * cols);
      else sinkhorn_cpu::gibbs_row(q[r], cost.eps, cols, k + (x + r) * cols);
    }
    if (!log_domain) sinkhorn_cpu::gradient_rows<R>(cost, sizes, grad, scalings, duals, x, q, k + x * cols);
    for (int r = 0; r < R; ++r) {
      T* row = k + (x + r) * cols;
      if (log_domain) sinkhorn_cpu::log_gradient_row(cost, sizes, grad, scalings, duals, x + r, q[r], row);
      if (grad_x != nullptr) sinkhorn_cpu::cosine_row(cost, x + r, q[r], row, grad_x, grad_y);
    }
  });
}

// A norm below the floor was replaced by it.
template <typename T>
void mask_small_norms(const T* norm, int64_t count, T* grad) {
  for (int64_t i = 0; i < count; ++i) {
    if (norm[i] < static_cast<T>(kNormFloor)) grad[i] = 0;
  }
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_cpu_backward(const Tensor& grad_, const Tensor& cost_,
                                                         const std::optional<Tensor>& norm_x_,
                                                         const std::optional<Tensor>& norm_y_,
                                                         const Tensor& scalings_, double eps, bool log_domain,
                                                         bool unroll) {
  const auto sizes = check_sinkhorn_backward(grad_, cost_, norm_x_, norm_y_, scalings_, eps, unroll);
  const Tensor cost = cost_.contiguous(), grad = grad_.contiguous(), scalings = scalings_.contiguous();
  const auto norm_x = contiguous(norm_x_), norm_y = contiguous(norm_y_);
  const Tensor grad_cost = at::empty(cost.sizes(), cost.options());
  const Tensor grad_x = at::empty(norm_x ? norm_x->sizes() : at::IntArrayRef{0}, cost.options());
  const Tensor grad_y = at::empty(norm_y ? norm_y->sizes() : at::IntArrayRef{0}, cost.options());
  AT_DISPATCH_FLOATING_TYPES(cost.scalar_type(), "sinkhorn_backward", [&] {
    const scalar_t *from = grad.const_data_ptr<scalar_t>(), *saved = scalings.const_data_ptr<scalar_t>();
    const scalar_t *nx = pointer<scalar_t>(norm_x), *ny = pointer<scalar_t>(norm_y);
    scalar_t *to = grad_cost.data_ptr<scalar_t>(), *to_x = nx ? grad_x.data_ptr<scalar_t>() : nullptr,
             *to_y = ny ? grad_y.data_ptr<scalar_t>() : nullptr;
    each_problem<scalar_t>(cost, nx, ny, sizes, eps, [&](int64_t n, const Cost<scalar_t>& problem) {
      std::vector<scalar_t> duals(unroll ? sizes.iters * sizes.duals() : 0);
      scalar_t *gx = nx ? to_x + n * sizes.rows : nullptr, *gy = ny ? to_y + n * sizes.cols : nullptr;
      backward_problem(problem, sizes, log_domain, unroll, from[n], saved + n * sizes.saved * sizes.duals(),
                       unroll ? duals.data() : nullptr, to + n * sizes.rows * sizes.cols, gx, gy);
      if (!nx) return;
      mask_small_norms(nx + n * sizes.rows, sizes.rows, gx);
      mask_small_norms(ny + n * sizes.cols, sizes.cols, gy);
    });
  });
  return {grad_cost, grad_x, grad_y};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def(
      "sinkhorn(Tensor cost, Tensor? norm_x, Tensor? norm_y, float eps, int iters, bool log_domain, bool unroll, "
      "bool with_plan) -> (Tensor loss, Tensor plan, Tensor scalings)");
  m.def(
      "sinkhorn_backward(Tensor grad, Tensor cost, Tensor? norm_x, Tensor? norm_y, Tensor scalings, float eps, "
      "bool log_domain, bool unroll) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("sinkhorn", sinkhorn_cpu_forward);
  m.impl("sinkhorn_backward", sinkhorn_cpu_backward);
}

}  // namespace d2ops
