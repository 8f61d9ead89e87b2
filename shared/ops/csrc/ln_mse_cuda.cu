// ln_mse on CUDA: one pass for the sums (blocks, then one block an image), one pass that writes the gradients.
#include "ln_mse.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

namespace d2ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kSegment = 16384;  // elements of either side a block reads: 2100 blocks at 2 x 256 x 200 x 336

// Packs a thread has under way of either side, at most 16 bytes each. Four of doubles do not fit the registers.
template <typename scalar_t>
constexpr int kPacks = sizeof(scalar_t) == 8 ? 2 : 4;

template <typename scalar_t, int kPack>
struct alignas(sizeof(scalar_t) * kPack) Pack {
  scalar_t at[kPack];
};

// Sums of the block's threads, in a fixed order, to out[0..kSums). Called by all threads; some of them write `out`.
__device__ void reduce_block(double* sums, double* out) {
  __shared__ double warps[kSums][kWarps];
#pragma unroll
  for (int k = 0; k < kSums; k++) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sums[k] += __shfl_down_sync(0xffffffffu, sums[k], offset);
    }
    if (threadIdx.x % 32 == 0) {
      warps[k][threadIdx.x / 32] = sums[k];
    }
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    double total = 0;
    for (int warp = 0; warp < kWarps; warp++) {
      total += warps[threadIdx.x][warp];
    }
    out[threadIdx.x] = total;
  }
}

// partial[block] = sums over the block's segment about the image's first elements. Each thread sums about its own first
// element in acc_t (see the CPU kernel), and goes to double once.
template <typename scalar_t, int kPack>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(const scalar_t* __restrict__ x, const scalar_t* __restrict__ y, int64_t size, int64_t parts,
                double* partial) {
  using acc_t = at::opmath_type<scalar_t>;
  using Values = Pack<scalar_t, kPack>;
  constexpr int kUnroll = kPacks<scalar_t>;
  constexpr int64_t stride = int64_t(kThreads) * kPack;
  const int64_t image = blockIdx.x / parts, begin = blockIdx.x % parts * kSegment;
  const int64_t end = begin + kSegment < size ? begin + kSegment : size;
  const int64_t start = begin + int64_t(threadIdx.x) * kPack;
  x += image * size;
  y += image * size;
  double sums[kSums] = {0, 0, 0, 0, 0};
  if (start < end) {
    const acc_t first_x = static_cast<acc_t>(x[start]), first_y = static_cast<acc_t>(y[start]);
    acc_t part[kSums] = {0, 0, 0, 0, 0};
    const auto add = [&](const Values& a, const Values& b) {
#pragma unroll
      for (int k = 0; k < kPack; k++) {
        const acc_t dx = static_cast<acc_t>(a.at[k]) - first_x, dy = static_cast<acc_t>(b.at[k]) - first_y;
        part[kSumX] += dx;
        part[kSumY] += dy;
        part[kSumXX] += dx * dx;
        part[kSumYY] += dy * dy;
        part[kSumXY] += dx * dy;
      }
    };
    int64_t i = start;
    for (; i + (kUnroll - 1) * stride < end; i += kUnroll * stride) {
      Values a[kUnroll], b[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        a[u] = *reinterpret_cast<const Values*>(x + i + u * stride);
        b[u] = *reinterpret_cast<const Values*>(y + i + u * stride);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        add(a[u], b[u]);
      }
    }
    for (; i < end; i += stride) {
      add(*reinterpret_cast<const Values*>(x + i), *reinterpret_cast<const Values*>(y + i));
    }
    const double count = double((end - start + stride - 1) / stride * kPack);
    const double delta_x = double(first_x) - static_cast<double>(x[0]);
    add_shifted(part, count, delta_x, double(first_y) - static_cast<double>(y[0]), sums);
  }
  reduce_block(sums, partial + int64_t(blockIdx.x) * kSums);
}

// One block an image.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const double* __restrict__ partial, const scalar_t* __restrict__ x, const scalar_t* __restrict__ y,
                   int64_t size, int64_t parts, double eps, double* sums, double* moments) {
  __shared__ double total[kSums];
  const int64_t image = blockIdx.x;
  double mine[kSums] = {0, 0, 0, 0, 0};
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
#pragma unroll
    for (int k = 0; k < kSums; k++) {
      mine[k] += partial[(image * parts + part) * kSums + k];
    }
  }
  reduce_block(mine, total);
  __syncthreads();
  if (threadIdx.x == 0) {
    double* out = moments + image * kMoments;
    moments_of(total, double(size), static_cast<double>(x[image * size]), static_cast<double>(y[image * size]), out);
    sums[image] = squared_distance(out, double(size), eps);
  }
}

template <typename scalar_t, int kPack>
__device__ void write_line(const Pack<scalar_t, kPack>& p, const Pack<scalar_t, kPack>& q,
                           const Line<at::opmath_type<scalar_t>>& line, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  Pack<scalar_t, kPack> result;
#pragma unroll
  for (int k = 0; k < kPack; k++) {
    const acc_t dp = static_cast<acc_t>(p.at[k]) - line.mean_p, dq = static_cast<acc_t>(q.at[k]) - line.mean_q;
    result.at[k] = static_cast<scalar_t>(line.own * dp + (line.other * dq + line.rest));
  }
  *reinterpret_cast<Pack<scalar_t, kPack>*>(out) = result;
}

// grad_x or grad_y may be null: not asked for.
template <typename scalar_t, int kPack>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const double* __restrict__ grad, const scalar_t* __restrict__ x, const scalar_t* __restrict__ y,
                    const double* __restrict__ moments, int64_t size, int64_t parts, double eps,
                    scalar_t* __restrict__ grad_x, scalar_t* __restrict__ grad_y) {
  using acc_t = at::opmath_type<scalar_t>;
  using Values = Pack<scalar_t, kPack>;
  constexpr int kUnroll = kPacks<scalar_t>;
  constexpr int64_t stride = int64_t(kThreads) * kPack;
  __shared__ Line<acc_t> lines[2];
  const int64_t image = blockIdx.x / parts, begin = blockIdx.x % parts * kSegment;
  if (threadIdx.x == 0 || threadIdx.x == 32) {  // two warps, so that both are worked out at once
    lines[threadIdx.x / 32] = gradient_line<acc_t>(moments + image * kMoments, threadIdx.x == 0, grad[image], eps);
  }
  __syncthreads();
  const Line<acc_t> line_x = lines[0], line_y = lines[1];
  const int64_t offset = image * size;
  const int64_t end = offset + (begin + kSegment < size ? begin + kSegment : size);
  const auto write = [&](const Values& a, const Values& b, int64_t i) {
    if (grad_x != nullptr) {
      write_line<scalar_t, kPack>(a, b, line_x, grad_x + i);
    }
    if (grad_y != nullptr) {
      write_line<scalar_t, kPack>(b, a, line_y, grad_y + i);
    }
  };
  int64_t i = offset + begin + int64_t(threadIdx.x) * kPack;
  for (; i + (kUnroll - 1) * stride < end; i += kUnroll * stride) {
    Values a[kUnroll], b[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      a[u] = *reinterpret_cast<const Values*>(x + i + u * stride);
      b[u] = *reinterpret_cast<const Values*>(y + i + u * stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      write(a[u], b[u], i + u * stride);
    }
  }
  for (; i < end; i += stride) {
    write(*reinterpret_cast<const Values*>(x + i), *reinterpret_cast<const Values*>(y + i), i);
  }
}

// f(kPack): packs of 16 bytes where every image starts at a multiple of 16 bytes, single elements elsewhere.
template <typename scalar_t, typename F>
void with_packs(int64_t size, std::initializer_list<const void*> pointers, const F& f) {
  constexpr int pack = 16 / sizeof(scalar_t);
  bool aligned = size % pack == 0;
  for (const void* pointer : pointers) {
    aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  }
  aligned ? f(std::integral_constant<int, pack>{}) : f(std::integral_constant<int, 1>{});
}

unsigned int grid_of(int64_t images, int64_t parts) {
  TORCH_CHECK(images <= std::numeric_limits<int>::max() / parts, "ln_mse: ", images, " rows of ", parts,
              " segments are more blocks than CUDA launches.");
  return static_cast<unsigned int>(images * parts);
}

std::tuple<Tensor, Tensor> ln_mse_cuda(const Tensor& x_in, const Tensor& y_in, double eps) {
  check_ln_mse(x_in, y_in, eps);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const auto format = ln_mse_layout(x_in, y_in);
  const Tensor x = x_in.contiguous(format), y = y_in.contiguous(format);
  Tensor sums = at::empty({x.size(0)}, x.options().dtype(at::kDouble));
  Tensor moments = at::empty({x.size(0), int64_t(kMoments)}, sums.options());
  if (x.numel() == 0) {
    return {sums.zero_(), moments.zero_()};
  }
  const int64_t images = x.size(0), size = x.numel() / images, parts = (size + kSegment - 1) / kSegment;
  const Tensor partial = at::empty({images, parts, int64_t(kSums)}, sums.options());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  D2OPS_DISPATCH(x.scalar_type(), "ln_mse", [&] {
    const scalar_t* xs = x.const_data_ptr<scalar_t>();
    const scalar_t* ys = y.const_data_ptr<scalar_t>();
    double* partials = partial.mutable_data_ptr<double>();
    with_packs<scalar_t>(size, {xs, ys}, [&](auto pack) {
      sums_kernel<scalar_t, pack()><<<grid_of(images, parts), kThreads, 0, stream>>>(xs, ys, size, parts, partials);
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    moments_kernel<scalar_t><<<grid_of(images, 1), kThreads, 0, stream>>>(
        partials, xs, ys, size, parts, eps, sums.mutable_data_ptr<double>(), moments.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  if (checks_cuda_values()) {
    raise_if_not_finite("ln_mse", {{"x", &x}, {"y", &y}});
  }
  return {sums, moments};
}

std::tuple<Tensor, Tensor> ln_mse_backward_cuda(const Tensor& grad, const Tensor& x_in, const Tensor& y_in,
                                                const Tensor& moments, double eps, bool need_x, bool need_y) {
  check_ln_mse_backward(grad, x_in, y_in, moments, eps);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const auto format = ln_mse_layout(x_in, y_in);
  const Tensor x = x_in.contiguous(format), y = y_in.contiguous(format);
  Tensor grad_x = need_x ? at::empty(x.sizes(), x.options(), format) : at::empty({0}, x.options());
  Tensor grad_y = need_y ? at::empty(x.sizes(), x.options(), format) : at::empty({0}, x.options());
  if (x.numel() == 0 || !(need_x || need_y)) {
    return {grad_x, grad_y};
  }
  const Tensor upstream = grad.contiguous(), saved = moments.contiguous();
  const int64_t images = x.size(0), size = x.numel() / images, parts = (size + kSegment - 1) / kSegment;
  D2OPS_DISPATCH(x.scalar_type(), "ln_mse_backward", [&] {
    const scalar_t* xs = x.const_data_ptr<scalar_t>();
    const scalar_t* ys = y.const_data_ptr<scalar_t>();
    scalar_t* out_x = need_x ? grad_x.mutable_data_ptr<scalar_t>() : nullptr;
    scalar_t* out_y = need_y ? grad_y.mutable_data_ptr<scalar_t>() : nullptr;
    with_packs<scalar_t>(size, {xs, ys, out_x, out_y}, [&](auto pack) {
      gradient_kernel<scalar_t, pack()><<<grid_of(images, parts), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          upstream.const_data_ptr<double>(), xs, ys, saved.const_data_ptr<double>(), size, parts, eps, out_x, out_y);
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_x, grad_y};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("ln_mse", ln_mse_cuda);
  m.impl("ln_mse_backward", ln_mse_backward_cuda);
}

}  // namespace d2ops
