// Soft RoI pooling on CUDA, backward: one kernel over tiles of positions, no atomics, after the means of its softmax.
#include "soft_roi_pool_cuda.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

namespace d2ops {
namespace {

using namespace roi;

template <typename scalar_t>
struct Gradients {
  using acc_t = at::opmath_type<scalar_t>;
  const scalar_t* grad_pooled;
  const acc_t *grad_maps, *per_map, *stats;  // grad_maps, grad_scores and grad_values may be null
  scalar_t *grad_scores, *grad_values;
};

// means[n, l, d] = sum over p of M * dM, one block each: through the pooling, and through the maps where they are used.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) mean_kernel(Problem<scalar_t> p, Gradients<scalar_t> g,
                                                        at::opmath_type<scalar_t>* means) {
  using acc_t = at::opmath_type<scalar_t>;
  __shared__ acc_t of_warp[kWarps];
  const RoiSizes z = p.size;
  const int64_t map = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  acc_t sum = 0;
  for (int64_t c = threadIdx.x; c < z.channels; c += kThreads) {
    sum += static_cast<acc_t>(g.grad_pooled[map / z.maps * z.channels + c]) * g.per_map[map * z.channels + c];
  }
  if (g.grad_maps) {
    for (int64_t start = warp * kTile; start < z.positions; start += kThreads * kEach) {
      acc_t weights[kEach], grad[kEach];
      load_weights<Four<scalar_t>, kEach>(p, map, start, z.positions, lane, g.stats, weights);
      load<Four<acc_t>, kEach>(g.grad_maps + map * z.positions, start, z.positions, lane, p.vectors, acc_t(0), grad);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        sum += weights[i] * grad[i];
      }
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    of_warp[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    acc_t all = 0;
    for (int i = 0; i < kWarps; ++i) {
      all += of_warp[i];
    }
    means[map] = all;
  }
}

// Two positions of a thread: a block of 16 weights and one of 16 values in registers, and grad_pooled of both blocks in
// shared memory, with zeros beyond L and C'. More groups or channels are gone through block by block.
template <typename scalar_t>
struct ThreadTile {
  using acc_t = at::opmath_type<scalar_t>;
  using Block = acc_t[kBlock][kPair];
  const Problem<scalar_t>& p;
  const Gradients<scalar_t>& g;
  acc_t (&grad)[kBlock][kBlock];
  int64_t n, d, start;
  int lane;

  __device__ __forceinline__ int64_t row(int64_t i, int64_t count) const {
    return (n * count + i) * p.size.maps + d;
  }

  // All threads of the block: the barriers keep the old matrix until everyone is done with it.
  __device__ __forceinline__ void load_grad(int64_t first_l, int64_t first_c) const {
    const RoiSizes& z = p.size;
    __syncthreads();
    for (int i = threadIdx.x; i < kBlock * kBlock; i += kThreads) {
      const int64_t l = first_l + i / kBlock, c = first_c + i % kBlock;
      const bool inside = l < z.groups && c < z.channels;
      grad[i / kBlock][i % kBlock] =
          inside ? static_cast<acc_t>(g.grad_pooled[(n * z.groups + l) * z.channels + c]) : acc_t(0);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load_groups(int64_t first_l, Block& weights) const {
#pragma unroll
    for (int r = 0; r < kBlock; ++r) {
      weights[r][0] = weights[r][1] = 0;
      if (first_l + r < p.size.groups) {
        load_weights<Two<scalar_t>, kPair>(p, row(first_l + r, p.size.groups), start, p.size.positions, lane, g.stats,
                                           weights[r]);
      }
    }
  }

  // sums[r] += sum over c of grad[r][c] * values[c]
  __device__ __forceinline__ void add_channels(int64_t first_c, Block& sums) const {
    const RoiSizes& z = p.size;
    acc_t values[kBlock][kPair];
#pragma unroll
    for (int c = 0; c < kBlock; ++c) {
      values[c][0] = values[c][1] = 0;
      if (first_c + c < z.channels) {
        load<Two<scalar_t>, kPair>(p.values + row(first_c + c, z.channels) * z.positions, start, z.positions, lane,
                                   p.vectors, acc_t(0), values[c]);
      }
    }
#pragma unroll
    for (int r = 0; r < kBlock; ++r) {
#pragma unroll
      for (int c = 0; c < kBlock; ++c) {
        sums[r][0] += grad[r][c] * values[c][0];
        sums[r][1] += grad[r][c] * values[c][1];
      }
    }
  }

  // weights * (sums + gradient of the maps - mean) / T
  __device__ __forceinline__ void write_scores(int64_t first_l, const acc_t* means, const Block& weights,
                                               Block& sums) const {
    const RoiSizes& z = p.size;
#pragma unroll
    for (int r = 0; r < kBlock; ++r) {
      if (first_l + r < z.groups) {
        const int64_t map = row(first_l + r, z.groups);
        acc_t through_maps[kPair] = {0, 0};
        if (g.grad_maps) {
          load<Two<acc_t>, kPair>(g.grad_maps + map * z.positions, start, z.positions, lane, p.vectors, acc_t(0),
                                  through_maps);
        }
#pragma unroll
        for (int i = 0; i < kPair; ++i) {
          sums[r][i] = weights[r][i] * (sums[r][i] + through_maps[i] - means[map]) * p.scale;
        }
        store<Two<scalar_t>, kPair>(g.grad_scores + map * z.positions, start, z.positions, lane, p.vectors, sums[r]);
      }
    }
  }

  __device__ __forceinline__ void write_values(int64_t first_c, const Block& sums) const {
    const RoiSizes& z = p.size;
#pragma unroll
    for (int c = 0; c < kBlock; ++c) {
      if (first_c + c < z.channels) {
        store<Two<scalar_t>, kPair>(g.grad_values + row(first_c + c, z.channels) * z.positions, start, z.positions,
                                    lane, p.vectors, sums[c]);
      }
    }
  }
};

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) backward_kernel(Problem<scalar_t> p, Gradients<scalar_t> g,
                                                            const at::opmath_type<scalar_t>* means, int64_t tiles) {
  using acc_t = at::opmath_type<scalar_t>;
  __shared__ __align__(32) acc_t grad[kBlock][kBlock];  // [group][channel]
  const RoiSizes z = p.size;
  const int64_t first = int64_t(blockIdx.x) % tiles * (kThreads * kPair) + threadIdx.x / 32 * (32 * kPair);
  const ThreadTile<scalar_t> tile{p, g, grad, blockIdx.x / tiles / z.maps, blockIdx.x / tiles % z.maps, first,
                                  static_cast<int>(threadIdx.x % 32)};
  acc_t weights[kBlock][kPair];
  for (int64_t first_l = 0; g.grad_scores && first_l < z.groups; first_l += kBlock) {
    acc_t sums[kBlock][kPair] = {};
    tile.load_groups(first_l, weights);
    for (int64_t first_c = 0; first_c < z.channels; first_c += kBlock) {
      tile.load_grad(first_l, first_c);
      tile.add_channels(first_c, sums);
    }
    tile.write_scores(first_l, means, weights, sums);
  }
  // With one block of groups and one of channels the weights and the matrix are still the right ones.
  const bool reuse = g.grad_scores && z.groups <= kBlock && z.channels <= kBlock;
  for (int64_t first_c = 0; g.grad_values && first_c < z.channels; first_c += kBlock) {
    acc_t sums[kBlock][kPair] = {};
    for (int64_t first_l = 0; first_l < z.groups; first_l += kBlock) {
      if (!reuse) {
        tile.load_groups(first_l, weights);
        tile.load_grad(first_l, first_c);
      }
#pragma unroll
      for (int r = 0; r < kBlock; ++r) {
#pragma unroll
        for (int c = 0; c < kBlock; ++c) {
          sums[c][0] += grad[r][c] * weights[r][0];
          sums[c][1] += grad[r][c] * weights[r][1];
        }
      }
    }
    tile.write_values(first_c, sums);
  }
}

std::tuple<Tensor, Tensor> soft_roi_pool_backward_cuda(const Tensor& grad_pooled_in,
                                                       const std::optional<Tensor>& grad_maps_in,
                                                       const Tensor& scores_in, const Tensor& values_in,
                                                       const std::optional<Tensor>& mask_in, const Tensor& per_map_in,
                                                       const Tensor& stats_in, double temperature, bool need_scores,
                                                       bool need_values) {
  const RoiSizes z = check_soft_roi_pool_backward(grad_pooled_in, grad_maps_in, scores_in, values_in, mask_in,
                                                  per_map_in, stats_in, temperature);
  const c10::cuda::CUDAGuard guard(scores_in.device());
  const Tensor scores = scores_in.contiguous(), values = values_in.contiguous();
  const Tensor mask = mask_in ? mask_in->contiguous() : Tensor();
  const Tensor grad_pooled = grad_pooled_in.contiguous();
  const Tensor grad_maps = grad_maps_in && need_scores ? grad_maps_in->contiguous() : Tensor();
  const Tensor per_map = per_map_in.contiguous(), stats = stats_in.contiguous();
  const Tensor grad_scores = at::empty(need_scores ? scores.sizes() : at::IntArrayRef{0}, scores.options());
  const Tensor grad_values = at::empty(need_values ? values.sizes() : at::IntArrayRef{0}, values.options());
  if (z.images == 0 || !(need_scores || need_values)) {
    return {grad_scores, grad_values};
  }
  const Tensor means = at::empty({z.images, z.groups, z.maps}, stats.options());
  D2OPS_DISPATCH(scores.scalar_type(), "soft_roi_pool_backward_cuda", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto stream = c10::cuda::getCurrentCUDAStream();
    Problem<scalar_t> p = make_problem<scalar_t>(scores, values, mask, z, temperature);
    const Gradients<scalar_t> g{grad_pooled.const_data_ptr<scalar_t>(),
                                grad_maps.defined() ? grad_maps.const_data_ptr<acc_t>() : nullptr,
                                per_map.const_data_ptr<acc_t>(),
                                stats.const_data_ptr<acc_t>(),
                                need_scores ? grad_scores.mutable_data_ptr<scalar_t>() : nullptr,
                                need_values ? grad_values.mutable_data_ptr<scalar_t>() : nullptr};
    p.vectors = p.vectors && (!g.grad_maps || aligned(g.grad_maps, kEach));
    if (need_scores) {
      mean_kernel<scalar_t><<<grid(z.images * z.groups * z.maps), kThreads, 0, stream>>>(
          p, g, means.mutable_data_ptr<acc_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    const int64_t tiles = (z.positions + kThreads * kPair - 1) / (kThreads * kPair);
    backward_kernel<scalar_t><<<grid(z.images * z.maps * tiles), kThreads, 0, stream>>>(
        p, g, means.const_data_ptr<acc_t>(), tiles);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_scores, grad_values};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("soft_roi_pool_backward", soft_roi_pool_backward_cuda);
}

}  // namespace d2ops
