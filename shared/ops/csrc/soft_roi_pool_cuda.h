// Rows of positions as the CUDA kernels of soft_roi_pool read and write them, and the weights made of them.
#pragma once

#include "soft_roi_pool.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>
#include <limits>

namespace d2ops {
namespace roi {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kBlock = 16;                    // groups and channels of one block of sums
inline constexpr int kEach = 4;                      // positions of a lane at a time, forward
inline constexpr int kTile = 32 * kEach;             // positions of a warp at a time, forward
inline constexpr int kPair = 2;                      // positions of a thread, backward
inline constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float exp_of(float x) {
  return expf(x);
}
__device__ __forceinline__ double exp_of(double x) {
  return exp(x);
}
__device__ __forceinline__ float larger(float a, float b) {
  return fmaxf(a, b);  // passes a NaN by: it is still in the exponential
}
__device__ __forceinline__ double larger(double a, double b) {
  return fmax(a, b);
}

template <typename scalar_t>
struct alignas(sizeof(scalar_t) * kEach) Four {
  scalar_t at[kEach];
};
template <typename scalar_t>
struct alignas(sizeof(scalar_t) * kPair) Two {
  scalar_t at[kPair];
};

// The positions of a lane: `count` neighbours where rows can be read in vectors, else 32 apart, so that loads coalesce.
template <int count>
__device__ __forceinline__ int64_t position(int64_t start, int lane, int i, bool vectors) {
  return start + (vectors ? lane * count + i : lane + 32 * i);
}

template <typename Vector, int count, typename scalar_t, typename acc_t>
__device__ __forceinline__ void load(const scalar_t* row, int64_t start, int64_t end, int lane, bool vectors,
                                     acc_t fill, acc_t (&out)[count]) {
  const int64_t first = start + lane * count;
  if (vectors && first + count <= end) {
    const Vector x = *reinterpret_cast<const Vector*>(row + first);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      out[i] = static_cast<acc_t>(x.at[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int64_t p = position<count>(start, lane, i, vectors);
    out[i] = p < end ? static_cast<acc_t>(row[p]) : fill;
  }
}

template <typename Vector, int count, typename scalar_t, typename acc_t>
__device__ __forceinline__ void store(scalar_t* row, int64_t start, int64_t end, int lane, bool vectors,
                                      const acc_t (&in)[count]) {
  const int64_t first = start + lane * count;
  if (vectors && first + count <= end) {
    Vector x;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      x.at[i] = static_cast<scalar_t>(in[i]);
    }
    *reinterpret_cast<Vector*>(row + first) = x;
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int64_t p = position<count>(start, lane, i, vectors);
    if (p < end) {
      row[p] = static_cast<scalar_t>(in[i]);
    }
  }
}

template <typename acc_t>
__device__ __forceinline__ acc_t warp_sum(acc_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    x += __shfl_xor_sync(kAll, x, step);
  }
  return x;
}

template <typename scalar_t>
struct Problem {
  using acc_t = at::opmath_type<scalar_t>;
  const scalar_t *scores, *values;
  const bool* mask;  // null: every position takes part
  RoiSizes size;
  acc_t scale;    // 1 / temperature
  bool vectors;   // rows start at multiples of four elements
};

// M of `count` positions of a lane, 0 outside [start, end) and where the mask is false.
template <typename Vector, int count, typename scalar_t, typename acc_t>
__device__ __forceinline__ void load_weights(const Problem<scalar_t>& p, int64_t map, int64_t start, int64_t end,
                                             int lane, const acc_t* stats, acc_t (&out)[count]) {
  const RoiSizes z = p.size;
  const acc_t top = stats[map * 2], part = 1 / stats[map * 2 + 1];
  load<Vector, count>(p.scores + map * z.positions, start, end, lane, p.vectors,
                      -std::numeric_limits<acc_t>::infinity(), out);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int64_t q = position<count>(start, lane, i, p.vectors);
    const bool valid = q < end && (!p.mask || p.mask[map / (z.groups * z.maps) * z.positions + q]);
    out[i] = valid ? exp_of(out[i] * p.scale - top) * part : acc_t(0);
  }
}

// Vectors of `count` elements fit every row of these tensors.
template <typename T>
bool aligned(const T* base, int count) {
  return reinterpret_cast<uintptr_t>(base) % (sizeof(T) * count) == 0;
}

template <typename scalar_t>
Problem<scalar_t> make_problem(const Tensor& scores, const Tensor& values, const Tensor& mask, const RoiSizes& size,
                               double temperature) {
  const scalar_t *s = scores.const_data_ptr<scalar_t>(), *v = values.const_data_ptr<scalar_t>();
  return {s, v, mask.defined() ? mask.const_data_ptr<bool>() : nullptr, size,
          static_cast<at::opmath_type<scalar_t>>(1 / temperature),
          size.positions % kEach == 0 && aligned(s, kEach) && aligned(v, kEach)};
}

inline unsigned grid(int64_t blocks) {
  TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "soft_roi_pool: ", blocks,
              " blocks are too many for CUDA; pool fewer images at a time.");
  return static_cast<unsigned>(blocks);
}

}  // namespace roi
}  // namespace d2ops
