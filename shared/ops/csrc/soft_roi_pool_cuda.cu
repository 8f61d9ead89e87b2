// Soft RoI pooling on CUDA, forward: blocks over (image, map, part of the positions, 16 x 16 of groups x channels),
// each with its own softmax sums, then a small kernel that adds the parts in a fixed order.
#include "soft_roi_pool_cuda.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

namespace d2ops {
namespace {

using namespace roi;

constexpr int kGroups = kBlock / kWarps;        // groups of one warp
constexpr int kResident = 3;                    // blocks a multiprocessor holds at once (double: as it comes)
constexpr int64_t kTargetBlocks = 132 * kResident * 2;  // two waves on a device of 132 multiprocessors
static_assert(kGroups * kBlock == 64, "warp_sums adds up 64 numbers");

__device__ __forceinline__ float larger(float a, float b) {
  return fmaxf(a, b);  // passes a NaN by: it is still in the exponential
}
__device__ __forceinline__ double larger(double a, double b) {
  return fmax(a, b);
}

template <typename acc_t>
__device__ __forceinline__ acc_t warp_max(acc_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    x = larger(x, __shfl_xor_sync(kAll, x, step));
  }
  return x;
}

// One step of warp_sums: lanes that differ in bit `step` swap halves of their sums and add.
template <int count, int step, typename acc_t>
__device__ __forceinline__ void halve(acc_t* sums, int lane) {
#pragma unroll
  for (int i = 0; i < count / 2; ++i) {
    const acc_t low = sums[i], high = sums[i + count / 2];
    const bool upper = lane & step;
    sums[i] = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, step);
  }
}

// Sums of 64 numbers over the warp: lane k ends with numbers 2k and 2k + 1 in sums[0] and sums[1].
template <typename acc_t>
__device__ __forceinline__ void warp_sums(acc_t (&sums)[64], int lane) {
  halve<64, 16>(sums, lane);
  halve<32, 8>(sums, lane);
  halve<16, 4>(sums, lane);
  halve<8, 2>(sums, lane);
  halve<4, 1>(sums, lane);
}

// Four groups of one warp: their scores become weights in place, their running sums over all positions so far.
template <typename acc_t>
struct WarpSums {
  acc_t sums[kGroups * kBlock], total[kGroups], top[kGroups];

  __device__ __forceinline__ WarpSums() {
#pragma unroll
    for (int i = 0; i < kGroups * kBlock; ++i) {
      sums[i] = 0;
    }
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
      total[r] = 0;
      top[r] = std::numeric_limits<acc_t>::lowest();
    }
  }

  __device__ __forceinline__ void to_weights(acc_t (&e)[kGroups][kEach], acc_t scale) {
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
      const acc_t high = warp_max(larger(larger(e[r][0], e[r][1]), larger(e[r][2], e[r][3]))) * scale;
      if (high > top[r]) {  // the same for the whole warp
        const acc_t factor = exp_of(top[r] - high);
        top[r] = high;
        total[r] *= factor;
#pragma unroll
        for (int c = 0; c < kBlock; ++c) {
          sums[r * kBlock + c] *= factor;
        }
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        e[r][i] = exp_of(e[r][i] * scale - top[r]);
        total[r] += e[r][i];
      }
    }
  }

  __device__ __forceinline__ void add(const acc_t (&e)[kGroups][kEach], const acc_t (&tile)[kBlock][kTile], int lane) {
#pragma unroll
    for (int c = 0; c < kBlock; ++c) {
      const Four<acc_t> y = *reinterpret_cast<const Four<acc_t>*>(&tile[c][lane * kEach]);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int r = 0; r < kGroups; ++r) {
          sums[r * kBlock + c] += e[r][i] * y.at[i];
        }
      }
    }
  }

  // Row l0 + r of [L] largest, [L] total, [C'][L] sums; only the first block of channels writes the first two.
  __device__ __forceinline__ void write(acc_t* out, const RoiSizes& z, int64_t l0, int64_t first_c, int lane) {
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
      const acc_t sum = warp_sum(total[r]);
      if (lane == 0 && first_c == 0 && l0 + r < z.groups) {
        out[l0 + r] = top[r];
        out[z.groups + l0 + r] = sum;
      }
    }
    warp_sums(sums, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t l = l0 + (2 * lane + i) / kBlock, c = first_c + (2 * lane + i) % kBlock;
      if (l < z.groups && c < z.channels) {
        out[(2 + c) * z.groups + l] = sums[i];
      }
    }
  }
};

// The scores of a lane for four groups; -inf beyond L, beyond `end` and where the mask is false.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ void load_scores(const Problem<scalar_t>& p, int64_t n, int64_t l0, int64_t d, int64_t start,
                                            int64_t end, int lane, acc_t (&e)[kGroups][kEach]) {
  const RoiSizes& z = p.size;
  const acc_t minus = -std::numeric_limits<acc_t>::infinity();
#pragma unroll
  for (int r = 0; r < kGroups; ++r) {
    if (l0 + r < z.groups) {
      load<Four<scalar_t>, kEach>(p.scores + ((n * z.groups + l0 + r) * z.maps + d) * z.positions, start, end, lane,
                                  p.vectors, minus, e[r]);
    } else {
      e[r][0] = e[r][1] = e[r][2] = e[r][3] = minus;
    }
  }
  if (p.mask) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t q = position<kEach>(start, lane, i, p.vectors);
      const bool outside = q < end && !p.mask[n * z.positions + q];
#pragma unroll
      for (int r = 0; r < kGroups; ++r) {
        e[r][i] = outside ? minus : e[r][i];
      }
    }
  }
}

// One part of the positions of one (image, map), 16 groups and 16 channels: a warp keeps 4 x 16 sums in registers.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, sizeof(at::opmath_type<scalar_t>) == 4 ? kResident : 1)
    pool_kernel(Problem<scalar_t> p, int64_t parts, int64_t part_size, int64_t group_blocks, int64_t channel_blocks,
                at::opmath_type<scalar_t>* partial) {
  using acc_t = at::opmath_type<scalar_t>;
  __shared__ __align__(32) acc_t tile[2][kBlock][kTile];
  const RoiSizes z = p.size;
  int64_t block = blockIdx.x;
  const int64_t first_c = block % channel_blocks * kBlock;
  block /= channel_blocks;
  const int64_t first_l = block % group_blocks * kBlock;
  block /= group_blocks;
  const int64_t part = block % parts, d = block / parts % z.maps, n = block / parts / z.maps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t l0 = first_l + warp * kGroups, begin = part * part_size, end = min(begin + part_size, z.positions);
  WarpSums<acc_t> sums;
  int buffer = 0;
  for (int64_t start = begin; start < end; start += kTile, buffer ^= 1) {
#pragma unroll
    for (int k = 0; k < kBlock / kWarps; ++k) {  // each warp brings four channels of the values into the tile
      const int row = warp * (kBlock / kWarps) + k;
      acc_t y[kEach] = {0, 0, 0, 0};
      if (first_c + row < z.channels) {
        load<Four<scalar_t>, kEach>(p.values + ((n * z.channels + first_c + row) * z.maps + d) * z.positions, start,
                                    end, lane, p.vectors, acc_t(0), y);
      }
      *reinterpret_cast<Four<acc_t>*>(&tile[buffer][row][lane * kEach]) = {y[0], y[1], y[2], y[3]};
    }
    acc_t e[kGroups][kEach];
    load_scores(p, n, l0, d, start, end, lane, e);
    sums.to_weights(e, p.scale);
    __syncthreads();  // one a tile is enough: the next tile goes into the other buffer
    sums.add(e, tile[buffer], lane);
  }
  sums.write(partial + ((n * z.maps + d) * parts + part) * (2 + z.channels) * z.groups, z, l0, first_c, lane);
}

// One block an (image, group): adds the parts in their order.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) combine_kernel(RoiSizes z, int64_t parts, bool masked,
                                                           const at::opmath_type<scalar_t>* partial, scalar_t* pooled,
                                                           at::opmath_type<scalar_t>* per_map,
                                                           at::opmath_type<scalar_t>* stats) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t n = blockIdx.x / z.groups, l = blockIdx.x % z.groups, step = (2 + z.channels) * z.groups;
  per_map += blockIdx.x * z.maps * z.channels;
  stats += blockIdx.x * z.maps * 2;
  for (int64_t i = threadIdx.x; i < z.maps * z.channels; i += kThreads) {
    const int64_t d = i / z.channels, c = i % z.channels;
    const acc_t* part = partial + (n * z.maps + d) * parts * step + l;
    acc_t top = part[0], total = 0, sum = 0;
    for (int64_t k = 1; k < parts; ++k) {
      top = larger(top, part[k * step]);
    }
    for (int64_t k = 0; k < parts; ++k) {
      const acc_t weight = exp_of(part[k * step] - top);
      total += weight * part[k * step + z.groups];
      sum += weight * part[k * step + (2 + c) * z.groups];
    }
    const bool nowhere = masked && total == 0;  // no valid position: the group pools nothing
    per_map[i] = nowhere ? acc_t(0) : sum / total;
    if (c == 0) {
      stats[d * 2] = top;
      stats[d * 2 + 1] = nowhere ? std::numeric_limits<acc_t>::infinity() : total;
    }
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < z.channels; c += kThreads) {
    acc_t sum = 0;
    for (int64_t d = 0; d < z.maps; ++d) {
      sum += per_map[d * z.channels + c];
    }
    pooled[blockIdx.x * z.channels + c] = static_cast<scalar_t>(sum);
  }
}

// One warp 128 positions of one map.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) maps_kernel(Problem<scalar_t> p, const at::opmath_type<scalar_t>* stats,
                                                        at::opmath_type<scalar_t>* maps) {
  using acc_t = at::opmath_type<scalar_t>;
  const RoiSizes z = p.size;
  const int lane = threadIdx.x % 32;
  const int64_t tiles = (z.positions + kTile - 1) / kTile, item = blockIdx.x * int64_t(kWarps) + threadIdx.x / 32;
  const int64_t map = item / tiles, start = item % tiles * kTile;
  if (map < z.images * z.groups * z.maps) {
    acc_t weights[kEach];
    load_weights<Four<scalar_t>, kEach>(p, map, start, z.positions, lane, stats, weights);
    store<Four<acc_t>, kEach>(maps + map * z.positions, start, z.positions, lane, p.vectors, weights);
  }
}

template <typename scalar_t>
void launch_pool(const Problem<scalar_t>& p, const Tensor& pooled, const Tensor& per_map, const Tensor& stats) {
  using acc_t = at::opmath_type<scalar_t>;
  const RoiSizes& z = p.size;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto blocks = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t group_blocks = blocks(z.groups, kBlock), channel_blocks = blocks(z.channels, kBlock);
  const int64_t problems = z.images * z.maps * group_blocks * channel_blocks;
  // Parts of at least eight tiles: adding up the sums of a warp at the end costs about one.
  const int64_t wanted = std::min(blocks(kTargetBlocks, problems), blocks(z.positions, 8 * kTile));
  const int64_t part_size = blocks(blocks(z.positions, wanted), kTile) * kTile, parts = blocks(z.positions, part_size);
  const Tensor partial = at::empty({z.images * z.maps * parts * (2 + z.channels) * z.groups}, per_map.options());
  pool_kernel<scalar_t><<<grid(problems * parts), kThreads, 0, stream>>>(p, parts, part_size, group_blocks,
                                                                        channel_blocks,
                                                                        partial.mutable_data_ptr<acc_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  combine_kernel<scalar_t><<<grid(z.images * z.groups), kThreads, 0, stream>>>(
      z, parts, p.mask != nullptr, partial.const_data_ptr<acc_t>(), pooled.mutable_data_ptr<scalar_t>(),
      per_map.mutable_data_ptr<acc_t>(), stats.mutable_data_ptr<acc_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_roi_pool_cuda(const Tensor& scores_in, const Tensor& values_in,
                                                              double temperature, const std::optional<Tensor>& mask_in,
                                                              bool return_maps) {
  const RoiSizes z = check_soft_roi_pool(scores_in, values_in, temperature, mask_in);
  const c10::cuda::CUDAGuard guard(scores_in.device());
  const Tensor scores = scores_in.contiguous(), values = values_in.contiguous();
  const Tensor mask = mask_in ? mask_in->contiguous() : Tensor();
  if (checks_cuda_values()) {
    raise_if_not_finite("soft_roi_pool", {{"scores", &scores}, {"values", &values}});
  }
  const auto acc = scores.options().dtype(at::toOpMathType(scores.scalar_type()));
  const Tensor pooled = at::empty({z.images, z.groups, z.channels}, scores.options());
  const Tensor per_map = at::empty({z.images, z.groups, z.maps, z.channels}, acc);
  const Tensor stats = at::empty({z.images, z.groups, z.maps, 2}, acc);
  const Tensor maps = return_maps ? at::empty(scores.sizes(), acc) : at::empty({0}, acc);
  if (z.images == 0) {
    return {pooled, per_map, stats, maps};
  }
  D2OPS_DISPATCH(scores.scalar_type(), "soft_roi_pool_cuda", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Problem<scalar_t> p = make_problem<scalar_t>(scores, values, mask, z, temperature);
    launch_pool<scalar_t>(p, pooled, per_map, stats);
    if (return_maps) {
      const int64_t items = z.images * z.groups * z.maps * ((z.positions + kTile - 1) / kTile);
      maps_kernel<scalar_t><<<grid((items + kWarps - 1) / kWarps), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          p, stats.const_data_ptr<acc_t>(), maps.mutable_data_ptr<acc_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {pooled, per_map, stats, maps};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CUDA, m) {
  m.impl("soft_roi_pool", soft_roi_pool_cuda);
}

}  // namespace d2ops
