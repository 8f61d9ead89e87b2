// Local importance-based pooling on the CPU: items of work shared out over threads.

#include "lip_pool2d_backward.h"
#include "lip_pool2d_forward.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>

namespace d2ops {

namespace {

// All items, cut by shape alone. `make(run)` builds the worker of one thread's share and calls run(worker).
template <typename Make>
void for_each_item(const Plan& p, int64_t height, int64_t band, const Make& make) {
  const int64_t bands = ceil_div(height, band);
  const int64_t grain = std::max<int64_t>(1, kBandElements / (p.in_width * std::min(band, height)));
  at::parallel_for(0, p.parts * bands, grain, [&](int64_t begin, int64_t end) {
    make([&](auto& worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % bands * band;
        worker.item(i / bands, row, std::min(row + band, height));
      }
    });
  });
}

std::tuple<Tensor, Tensor> lip_pool2d_cpu(const Tensor& x, const Tensor& logit, c10::IntArrayRef kernel_size,
                                          c10::IntArrayRef stride, c10::IntArrayRef padding,
                                          std::optional<double> gate, bool keep_lse) {
  const LipShape s = lip_pool2d_check(x, logit, kernel_size, stride, padding, gate);
  const Tensor xs = lip_pool2d_layout(x, s), ls = lip_pool2d_layout(logit, s);
  auto [y, lse] = lip_pool2d_outputs(x, s, keep_lse);
  if (y.numel() == 0) {
    return {y, lse};
  }
  std::atomic<bool> finite{true};
  D2OPS_DISPATCH(x.scalar_type(), "lip_pool2d", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Plan plan(s, Vectorized<acc_t>::size());
    for_each_item(plan, s.oh, plan.band_rows(s.sh), [&](const auto& run) {
      Forward<scalar_t> worker(plan, xs.const_data_ptr<scalar_t>(), ls.const_data_ptr<scalar_t>(),
                               y.mutable_data_ptr<scalar_t>(), keep_lse ? lse.mutable_data_ptr<acc_t>() : nullptr);
      run(worker);
      if (!worker.finite) {
        finite = false;
      }
    });
  });
  if (!finite) {
    raise_if_not_finite("lip_pool2d", {{"x", &x}, {"logit", &logit}});
  }
  return {y, lse};
}

std::tuple<Tensor, Tensor> lip_pool2d_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& logit,
                                                   const Tensor& y, const Tensor& lse, c10::IntArrayRef kernel_size,
                                                   c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                   std::optional<double> gate, std::array<bool, 2> needs) {
  const LipShape s = lip_pool2d_check_backward(grad, x, logit, y, lse, kernel_size, stride, padding, gate);
  const Tensor gs = lip_pool2d_layout(grad, s), xs = lip_pool2d_layout(x, s), ls = lip_pool2d_layout(logit, s);
  const Tensor ys = lip_pool2d_layout(y, s), zs = lip_pool2d_layout(lse, s);
  auto [grad_x, grad_logit] = lip_pool2d_gradients(x, s, needs);
  if (x.numel() == 0) {
    return {grad_x, grad_logit};
  }
  D2OPS_DISPATCH(x.scalar_type(), "lip_pool2d_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Plan plan(s, Vectorized<acc_t>::size());
    for_each_item(plan, s.h, std::min(plan.band_rows(1), s.h), [&](const auto& run) {
      Backward<scalar_t> worker(plan, gs.const_data_ptr<scalar_t>(), xs.const_data_ptr<scalar_t>(),
                                ls.const_data_ptr<scalar_t>(), ys.const_data_ptr<scalar_t>(),
                                zs.const_data_ptr<acc_t>(),
                                needs[0] ? grad_x.mutable_data_ptr<scalar_t>() : nullptr,
                                needs[1] ? grad_logit.mutable_data_ptr<scalar_t>() : nullptr);
      run(worker);
    });
  });
  return {grad_x, grad_logit};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("lip_pool2d", lip_pool2d_cpu);
  m.impl("lip_pool2d_backward", lip_pool2d_backward_cpu);
}

}  // namespace d2ops
