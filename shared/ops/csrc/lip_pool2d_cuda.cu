// Local importance-based pooling on CUDA, both layouts by strides. A thread owns one output (forward) or one input
// (backward, a gather: each gradient is written once, no atomics), in channels_last of kVector neighbouring channels.
// Neighbouring threads own neighbouring columns or channels, so the overlap of windows hits in L1.

#include "lip_pool2d.h"

#include <ATen/cuda/detail/IntegerDivider.cuh>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

namespace d2ops {

namespace {

using at::cuda::detail::IntDivider;

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // at least, on a multiprocessor: 128 registers a thread, and none are spilled

template <typename scalar_t, int kVector>
struct alignas(sizeof(scalar_t) * kVector) Pack {
  scalar_t values[kVector];
};

// exp on the special-function units for float: its relative error is about |d| * 6e-8 for exp(d), and d <= 0 here, so a
// weight of at most 1 is off by less than 6e-8 * |d| exp(d).
__device__ __forceinline__ float fast_exp(float x) {
  return __expf(x);
}
__device__ __forceinline__ double fast_exp(double x) {
  return exp(x);
}
__device__ __forceinline__ float log_of(float x) {
  return logf(x);
}
__device__ __forceinline__ double log_of(double x) {
  return log(x);
}

// Within 2 units in the last place for float, and without the call that the exact division is.
__device__ __forceinline__ float divide(float a, float b) {
  return __fdividef(a, b);
}
__device__ __forceinline__ double divide(double a, double b) {
  return a / b;
}

// kVector neighbours in memory, computed with as acc_t.
template <int kVector, typename scalar_t, typename acc_t>
__device__ __forceinline__ void load(const scalar_t* from, acc_t (&to)[kVector]) {
  const auto raw = *reinterpret_cast<const Pack<scalar_t, kVector>*>(from);
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    to[v] = static_cast<acc_t>(raw.values[v]);
  }
}

template <int kVector, typename scalar_t, typename acc_t>
__device__ __forceinline__ void store(scalar_t* to, const acc_t (&from)[kVector]) {
  Pack<scalar_t, kVector> raw;
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    raw.values[v] = static_cast<scalar_t>(from[v]);
  }
  *reinterpret_cast<Pack<scalar_t, kVector>*>(to) = raw;
}

// Logits, l = gate * sigmoid(z) where there is a gate (0: none). The accurate exp: its error counts `gate` times.
template <int kVector, typename scalar_t, typename acc_t>
__device__ __forceinline__ void load_logit(const scalar_t* from, acc_t gate, acc_t (&l)[kVector]) {
  load<kVector>(from, l);
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    l[v] = gate > 0 ? divide(gate, 1 + exp(-l[v])) : l[v];
  }
}

// Elements of memory are at outer * outer_stride + row * row_stride + column * column_stride + inner * kVector.
struct Strides {
  int64_t outer, row, column;
};

// Groups of `per_group` outer indices take `blocks` blocks each. In a group, threads run over (outer, row, column,
// inner), the last fastest.
struct Work {
  int64_t outer, per_group, per_outer;
  IntDivider<unsigned int> blocks, rows, columns, inner;
  Strides in, out;
  int h, w, oh, ow, kh, kw, sh, sw, ph, pw;
};

struct Place {
  int64_t outer;
  int row, column;
  int64_t inner;
  bool exists;
};

__device__ __forceinline__ Place find_place(const Work& work) {
  const auto group = work.blocks.divmod(blockIdx.x);
  const auto inner = work.inner.divmod(group.mod * kThreads + threadIdx.x);
  const auto column = work.columns.divmod(inner.div);
  const auto row = work.rows.divmod(column.div);
  const int64_t outer = group.div * work.per_group + row.div;
  const bool exists = row.div < work.per_group && outer < work.outer;
  return {outer, static_cast<int>(row.mod), static_cast<int>(column.mod), inner.mod, exists};
}

// f(tap, offset) for the positions of an output's window that are inside the map.
template <int kWindow, typename F>
__device__ __forceinline__ void each_input(const Work& work, const Place& at, int sh, int sw, const F& f) {
  const int kh = kWindow > 0 ? kWindow : work.kh, kw = kWindow > 0 ? kWindow : work.kw;
  const int h0 = at.row * sh - work.ph, w0 = at.column * sw - work.pw;
#pragma unroll
  for (int i = 0; i < kh; ++i) {
#pragma unroll
    for (int j = 0; j < kw; ++j) {
      const int h = h0 + i, w = w0 + j;
      if (h >= 0 && h < work.h && w >= 0 && w < work.w) {
        f(kWindow > 0 ? i * kWindow + j : 0, h * work.in.row + w * work.in.column);
      }
    }
  }
}

// kWindow, kStride: both sides' sizes where they are known at compile time, so that the window's loops unroll and its
// logits stay in registers; 0 reads sizes from `work` and loads the logits twice.
template <typename scalar_t, int kVector, int kWindow, int kStride>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(
    const Work work, const scalar_t* __restrict__ x, const scalar_t* __restrict__ logit, scalar_t* __restrict__ y,
    at::opmath_type<scalar_t>* __restrict__ lse, const at::opmath_type<scalar_t> gate) {
  using acc_t = at::opmath_type<scalar_t>;
  const int sh = kStride > 0 ? kStride : work.sh, sw = kStride > 0 ? kStride : work.sw;
  const Place at = find_place(work);
  if (!at.exists) {
    return;
  }
  const int64_t base = at.outer * work.in.outer + at.inner * kVector;
  acc_t kept[kWindow > 0 ? kWindow * kWindow : 1][kVector], top[kVector], total[kVector] = {}, sum[kVector] = {};
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    top[v] = -INFINITY;
  }
  each_input<kWindow>(work, at, sh, sw, [&](int tap, int64_t offset) {
    const int64_t from = base + offset;
    load_logit(logit + from, gate, kept[tap]);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      top[v] = kept[tap][v] > top[v] ? kept[tap][v] : top[v];  // passes a NaN over, which is one again below
    }
  });
  each_input<kWindow>(work, at, sh, sw, [&](int tap, int64_t offset) {
    const int64_t from = base + offset;
    acc_t value[kVector];
    load(x + from, value);
    if constexpr (kWindow == 0) {
      load_logit(logit + from, gate, kept[tap]);
    }
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const acc_t e = fast_exp(kept[tap][v] - top[v]);
      total[v] += e;
      sum[v] += e * value[v];
    }
  });
  const int64_t to =
      at.outer * work.out.outer + at.row * work.out.row + at.column * work.out.column + at.inner * kVector;
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    sum[v] = divide(sum[v], total[v]);
    total[v] = top[v] + log_of(total[v]);
  }
  store(y + to, sum);
  if (lse != nullptr) {
    store(lse + to, total);
  }
}

// First output whose window holds padded coordinate i: ceil((i - kernel + 1) / stride), at least 0.
__device__ __forceinline__ int first_window(int i, int kernel, int stride) {
  return i < kernel ? 0 : (i - kernel) / stride + 1;
}

// dx_i = sum over the windows o of i of q, dl_i = sum of q (x_i - y_o), q = g_o exp(l_i - lse_o) <= g_o.
template <typename scalar_t, int kVector, int kWindow, int kStride>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(
    const Work work, const scalar_t* __restrict__ grad, const scalar_t* __restrict__ x,
    const scalar_t* __restrict__ logit, const scalar_t* __restrict__ y,
    const at::opmath_type<scalar_t>* __restrict__ lse, scalar_t* __restrict__ grad_x, scalar_t* __restrict__ grad_logit,
    const at::opmath_type<scalar_t> gate) {
  using acc_t = at::opmath_type<scalar_t>;
  const int kh = kWindow > 0 ? kWindow : work.kh, kw = kWindow > 0 ? kWindow : work.kw;
  const int sh = kStride > 0 ? kStride : work.sh, sw = kStride > 0 ? kStride : work.sw;
  const Place at = find_place(work);
  if (!at.exists) {
    return;
  }
  const int64_t here =
      at.outer * work.in.outer + at.row * work.in.row + at.column * work.in.column + at.inner * kVector;
  acc_t value[kVector], l[kVector], dx[kVector] = {}, dl[kVector] = {};
  load(x + here, value);
  load_logit(logit + here, gate, l);
  const int h = at.row + work.ph, w = at.column + work.pw;
  const int oh_end = min(h / sh + 1, work.oh), ow_begin = first_window(w, kw, sw), ow_end = min(w / sw + 1, work.ow);
  for (int oh = first_window(h, kh, sh); oh < oh_end; ++oh) {
    for (int ow = ow_begin; ow < ow_end; ++ow) {
      const int64_t from = at.outer * work.out.outer + oh * work.out.row + ow * work.out.column + at.inner * kVector;
      acc_t g[kVector], mean[kVector], statistic[kVector];
      load(grad + from, g);
      load(y + from, mean);
      load(lse + from, statistic);
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const acc_t q = g[v] * fast_exp(l[v] - statistic[v]);
        dx[v] += q;
        dl[v] += q * (value[v] - mean[v]);
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    dl[v] = gate > 0 ? dl[v] * l[v] * (1 - divide(l[v], gate)) : dl[v];
  }
  if (grad_x != nullptr) {
    store(grad_x + here, dx);
  }
  if (grad_logit != nullptr) {
    store(grad_logit + here, dl);
  }
}

// Work over `rows` x `columns` positions of each outer index, `vector` channels a thread.
Work make_work(const LipShape& s, int vector, int64_t rows, int64_t columns) {
  Work work;
  const int64_t inner = s.channels_last ? s.c / vector : 1, per_outer = rows * columns * inner;
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 4;
  TORCH_CHECK_VALUE(std::max(s.h * s.w, s.oh * s.ow) * (s.channels_last ? s.c : 1) <= most,
                    "lip_pool2d: x has maps of ", s.h, " x ", s.w, "; one map (one image in channels_last) must hold ",
                    "at most ", most, " elements on CUDA.");
  work.outer = s.channels_last ? s.n : s.n * s.c;
  work.per_outer = per_outer;
  work.per_group = std::clamp<int64_t>(64 * kThreads / per_outer, 1, work.outer);
  const int64_t blocks = (per_outer * work.per_group + kThreads - 1) / kThreads;
  work.blocks = IntDivider<unsigned int>(static_cast<unsigned int>(blocks));
  work.rows = IntDivider<unsigned int>(static_cast<unsigned int>(rows));
  work.columns = IntDivider<unsigned int>(static_cast<unsigned int>(columns));
  work.inner = IntDivider<unsigned int>(static_cast<unsigned int>(inner));
  const int64_t step = s.channels_last ? s.c : 1;
  work.in = {s.h * s.w * step, s.w * step, step};
  work.out = {s.oh * s.ow * step, s.ow * step, step};
  const int64_t from[] = {s.h, s.w, s.oh, s.ow, s.kh, s.kw, s.sh, s.sw, s.ph, s.pw};
  int* const to[] = {&work.h,  &work.w,  &work.oh, &work.ow, &work.kh,
                     &work.kw, &work.sh, &work.sw, &work.ph, &work.pw};
  for (int i = 0; i < 10; ++i) {
    *to[i] = static_cast<int>(from[i]);
  }
  return work;
}

dim3 grid_of(const Work& work) {
  const int64_t blocks = (work.outer + work.per_group - 1) / work.per_group * work.blocks.divisor;
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int32_t>::max(), "lip_pool2d: x needs ", blocks,
                    " blocks of CUDA threads; split the batch.");
  return dim3(static_cast<unsigned int>(blocks));
}

bool aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// Elements of 4 neighbouring channels a thread, except double: 16 bytes of float.
template <typename scalar_t>
constexpr int kVectorOf = sizeof(scalar_t) <= 4 ? 4 : 1;

// f(kVector, kWindow, kStride): vectors in channels_last, the windows of LIP-ResNet and LIP-DenseNet unrolled.
template <typename scalar_t, typename F>
void choose(const LipShape& s, bool vectors, const F& f) {
  const auto with_window = [&](auto vector) {
    const auto is = [&](int64_t window, int64_t stride) {
      return s.kh == window && s.kw == window && s.sh == stride && s.sw == stride;
    };
    if (is(3, 2)) {
      f(vector, std::integral_constant<int, 3>(), std::integral_constant<int, 2>());
    } else if (is(2, 2)) {
      f(vector, std::integral_constant<int, 2>(), std::integral_constant<int, 2>());
    } else {
      f(vector, std::integral_constant<int, 0>(), std::integral_constant<int, 0>());
    }
  };
  if (vectors) {
    with_window(std::integral_constant<int, kVectorOf<scalar_t>>());
  } else {
    with_window(std::integral_constant<int, 1>());
  }
}

std::tuple<Tensor, Tensor> lip_pool2d_cuda(const Tensor& x, const Tensor& logit, c10::IntArrayRef kernel_size,
                                           c10::IntArrayRef stride, c10::IntArrayRef padding,
                                           std::optional<double> gate, bool keep_lse) {
  const LipShape s = lip_pool2d_check(x, logit, kernel_size, stride, padding, gate);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor xs = lip_pool2d_layout(x, s), ls = lip_pool2d_layout(logit, s);
  auto [y, lse] = lip_pool2d_outputs(x, s, keep_lse);
  if (y.numel() == 0) {
    return {y, lse};
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  D2OPS_DISPATCH(x.scalar_type(), "lip_pool2d", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const bool vectors = s.channels_last && s.c % kVectorOf<scalar_t> == 0 && aligned(xs) && aligned(ls);
    choose<scalar_t>(s, vectors, [&](auto vector, auto window, auto step) {
      const Work work = make_work(s, vector, s.oh, s.ow);
      forward_kernel<scalar_t, vector, window, step><<<grid_of(work), kThreads, 0, stream>>>(
          work, xs.const_data_ptr<scalar_t>(), ls.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(),
          keep_lse ? lse.mutable_data_ptr<acc_t>() : nullptr, static_cast<acc_t>(s.gate));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  if (checks_cuda_values() && !y.isfinite().all().item<bool>()) {
    raise_if_not_finite("lip_pool2d", {{"x", &x}, {"logit", &logit}});
  }
  return {y, lse};
}

std::tuple<Tensor, Tensor> lip_pool2d_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& logit,
                                                    const Tensor& y, const Tensor& lse, c10::IntArrayRef kernel_size,
                                                    c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                    std::optional<double> gate, std::array<bool, 2> needs) {
  const LipShape s = lip_pool2d_check_backward(grad, x, logit, y, lse, kernel_size, stride, padding, gate);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor gs = lip_pool2d_layout(grad, s), xs = lip_pool2d_layout(x, s), ls = lip_pool2d_layout(logit, s);
  const Tensor ys = lip_pool2d_layout(y, s), zs = lip_pool2d_layout(lse, s);
  auto [grad_x, grad_logit] = lip_pool2d_gradients(x, s, needs);
  if (x.numel() == 0) {
    return {grad_x, grad_logit};
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  D2OPS_DISPATCH(x.scalar_type(), "lip_pool2d_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const bool vectors = s.channels_last && s.c % kVectorOf<scalar_t> == 0 && aligned(gs) && aligned(xs) &&
                         aligned(ls) && aligned(ys) && aligned(zs);
    choose<scalar_t>(s, vectors, [&](auto vector, auto window, auto step) {
      const Work work = make_work(s, vector, s.h, s.w);
      backward_kernel<scalar_t, vector, window, step><<<grid_of(work), kThreads, 0, stream>>>(
          work, gs.const_data_ptr<scalar_t>(), xs.const_data_ptr<scalar_t>(), ls.const_data_ptr<scalar_t>(),
          ys.const_data_ptr<scalar_t>(), zs.const_data_ptr<acc_t>(),
          needs[0] ? grad_x.mutable_data_ptr<scalar_t>() : nullptr,
          needs[1] ? grad_logit.mutable_data_ptr<scalar_t>() : nullptr, static_cast<acc_t>(s.gate));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return {grad_x, grad_logit};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("lip_pool2d", lip_pool2d_cuda);
  m.impl("lip_pool2d_backward", lip_pool2d_backward_cuda);
}

}  // namespace d2ops
