// What one block does for one transport problem: sums over rows and columns in a fixed order, and the last pass of the
// backward. Every function is called by the whole block and ends with a barrier.
#pragma once

#include "sinkhorn.h"

#include <limits>

namespace d2ops::sinkhorn_cuda {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 4;     // rows a warp sums together
constexpr int kColumns = 4;  // columns a thread owns in the last pass, 32 apart
constexpr int kTile = 32 * kColumns;

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <typename T, int N>
__device__ inline Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

template <typename T>
__device__ inline T warp_max(T value) {
  for (int step = 16; step > 0; step /= 2) value = ::max(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// Q of one problem: given, or one minus the cosine from inner products and norms.
template <typename T>
struct Cost {
  const T* values;
  const T* norm_x;  // nullptr: `values` are the costs
  const T* norm_y;
  int rows, cols;
  T eps;

  __device__ static T floored(T norm) { return ::max(norm, static_cast<T>(kNormFloor)); }
  __device__ T norms(int x, int y) const { return floored(norm_x[x]) * floored(norm_y[y]); }
  __device__ T at(int x, int y) const {
    const T value = values[static_cast<int64_t>(x) * cols + y];
    return norm_x == nullptr ? value : T(1) - value / norms(x, y);
  }
};

// K: its first rows in shared memory, as many as fit, the others in global memory, which stays in the L2 cache.
template <typename T>
struct Matrix {
  T* near;
  T* far;
  int near_rows, cols;

  __device__ T* row(int x) const {
    return x < near_rows ? near + static_cast<int64_t>(x) * cols : far + static_cast<int64_t>(x - near_rows) * cols;
  }
};

// finish(x, sum_y term(x, y)): a warp a row.
template <typename T, typename Term, typename Finish>
__device__ inline void sum_rows(int rows, int cols, const Term& term, const Finish& finish) {
  const int lane = threadIdx.x % 32;
  for (int x = threadIdx.x / 32; x < rows; x += kWarps) {
    T sum = 0;
    for (int y = lane; y < cols; y += 32) sum += term(x, y);
    sum = warp_sum(sum);
    if (lane == 0) finish(x, sum);
  }
  __syncthreads();
}

// finish(y, sum_x term(x, y)): `groups` partial sums a column, added in order. partial: groups x cols.
template <typename T, typename Term, typename Finish>
__device__ inline void sum_columns(int rows, int cols, int groups, T* partial, const Term& term,
                                   const Finish& finish) {
  for (int item = threadIdx.x; item < groups * cols; item += kThreads) {
    T sum = 0;
    for (int x = item / cols; x < rows; x += groups) sum += term(x, item % cols);
    partial[item] = sum;
  }
  __syncthreads();
  for (int y = threadIdx.x; y < cols; y += kThreads) {
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += partial[g * cols + y];
    finish(y, sum);
  }
  __syncthreads();
}

// finish(x, sum_y K_xy v_y). N: elements of a 16-byte load, or 1 where rows do not start on 16 bytes.
template <int N, typename T, typename Finish>
__device__ inline void multiply_rows(const Matrix<T>& k, int rows, const T* v, const Finish& finish) {
  const int lane = threadIdx.x % 32;
  for (int first = threadIdx.x / 32 * kRows; first < rows; first += kWarps * kRows) {
    const T* row[kRows];
    T sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      row[r] = k.row(::min(first + r, rows - 1));
      sum[r] = 0;
    }
    for (int y = lane * N; y < k.cols; y += 32 * N) {
      const auto value = load<T, N>(v + y);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto element = load<T, N>(row[r] + y);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[r] += element.v[i] * value.v[i];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = warp_sum(sum[r]);
      if (lane == r && first + r < rows) finish(first + r, sum[r]);
    }
  }
  __syncthreads();
}

// finish(y, sum_x K_xy w_x)
template <int N, typename T, typename Finish>
__device__ inline void multiply_columns(const Matrix<T>& k, int rows, int groups, T* partial, const T* w,
                                        const Finish& finish) {
  const int packs = k.cols / N;
  for (int item = threadIdx.x; item < groups * packs; item += kThreads) {
    const int y = item % packs * N;
    Pack<T, N> sum{};
#pragma unroll 4
    for (int x = item / packs; x < rows; x += groups) {
      const auto element = load<T, N>(k.row(x) + y);
      const T weight = w[x];
#pragma unroll
      for (int i = 0; i < N; ++i) sum.v[i] += element.v[i] * weight;
    }
    *reinterpret_cast<Pack<T, N>*>(partial + item / packs * k.cols + y) = sum;
  }
  __syncthreads();
  for (int y = threadIdx.x; y < k.cols; y += kThreads) {
    T sum = 0;
    for (int g = 0; g < groups; ++g) sum += partial[g * k.cols + y];
    finish(y, sum);
  }
  __syncthreads();
}

// finish(x, log sum_y exp(term(x, y))), about the row's own maximum
template <typename T, typename Term, typename Finish>
__device__ inline void log_sum_rows(int rows, int cols, const Term& term, const Finish& finish) {
  const int lane = threadIdx.x % 32;
  for (int x = threadIdx.x / 32; x < rows; x += kWarps) {
    T top = -std::numeric_limits<T>::infinity(), sum = 0;
    for (int y = lane; y < cols; y += 32) top = ::max(top, term(x, y));
    top = warp_max(top);
    for (int y = lane; y < cols; y += 32) sum += ::exp(term(x, y) - top);
    sum = warp_sum(sum);
    if (lane == 0) finish(x, top + ::log(sum));
  }
  __syncthreads();
}

// finish(y, log sum_x exp(term(x, y))), about the column's own maximum. partial: 2 x groups x cols; groups <= rows.
template <typename T, typename Term, typename Finish>
__device__ inline void log_sum_columns(int rows, int cols, int groups, T* partial, const Term& term,
                                       const Finish& finish) {
  T* tops = partial + groups * cols;
  for (int item = threadIdx.x; item < groups * cols; item += kThreads) {
    const int y = item % cols;
    T top = -std::numeric_limits<T>::infinity(), sum = 0;
    for (int x = item / cols; x < rows; x += groups) top = ::max(top, term(x, y));
    for (int x = item / cols; x < rows; x += groups) sum += ::exp(term(x, y) - top);
    tops[item] = top;
    partial[item] = sum;
  }
  __syncthreads();
  for (int y = threadIdx.x; y < cols; y += kThreads) {
    T top = tops[y], sum = 0;
    for (int g = 1; g < groups; ++g) top = ::max(top, tops[g * cols + y]);
    for (int g = 0; g < groups; ++g) sum += partial[g * cols + y] * ::exp(tops[g * cols + y] - top);
    finish(y, top + ::log(sum));
  }
  __syncthreads();
}

// What the last pass reads and writes for one problem. Layout of scalings and duals: a row an iteration, cols + rows.
template <typename T>
struct Gradient {
  T grad;
  const T* scalings;
  const T* duals;  // nullptr: the plan is a constant
  int iters, saved;
  T* cost;         // dQ, or the gradient of the inner products
  T* norm_x;
  T* norm_y;
  T* row_parts;    // column blocks x rows, scratch
  T* column_parts; // groups x cols, scratch
  int groups;
};

// The 2 L rank-one updates of one tile: of dK, or of dM in the log domain, where each takes an exponential.
template <bool LOG, int R, typename T>
__device__ inline void rank_one_updates(const Cost<T>& cost, const Gradient<T>& g, const int (&x)[R],
                                        const int (&y)[kColumns], T (&sum)[R][kColumns]) {
  const int step = cost.rows + cost.cols;
  const T uniform = LOG ? -::log(static_cast<T>(cost.rows)) : T(1) / cost.rows;
#pragma unroll 1
  for (int t = 0; t < g.iters; ++t) {
    const T *scaling = g.scalings + static_cast<int64_t>(t) * step, *dual = g.duals + static_cast<int64_t>(t) * step;
    T a[kColumns], ds[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      a[c] = scaling[y[c]];
      ds[c] = dual[y[c]];
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int at = cost.cols + x[r];
      const T dr = dual[at], before = t == 0 ? uniform : (scaling - step)[at], now = LOG ? scaling[at] : T(0);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if constexpr (LOG) {
          const T base = a[c] - cost.at(x[r], y[c]) / cost.eps;
          sum[r][c] += dr * ::exp(base + now) + ds[c] * ::exp(base + before);
        } else {
          sum[r][c] += dr * a[c] + before * ds[c];
        }
      }
    }
  }
}

// dQ = g P - (g P Q + K dK') / eps with dK' the rank-one updates, then what it means for inner products and norms.
// element(x, y): K_xy; in the log domain unused. A warp stays in its columns, so that their sums stay in registers.
template <bool LOG, typename T, typename Element>
__device__ inline void write_gradient(const Cost<T>& cost, const Gradient<T>& g, const Element& element) {
  constexpr int R = LOG ? 1 : 16 / static_cast<int>(sizeof(T));  // rows of a warp's tile: what registers hold
  const int lane = threadIdx.x % 32, blocks = (cost.cols + kTile - 1) / kTile, step = cost.rows + cost.cols;
  const T* a = g.scalings + static_cast<int64_t>(g.saved - 1) * step;
  const T* b = a + cost.cols;
  for (int item = threadIdx.x / 32; item < g.groups * blocks; item += kWarps) {
    const int block = item % blocks, group = item / blocks;
    int y[kColumns], x[R];
    T columns[kColumns] = {};
    for (int c = 0; c < kColumns; ++c) y[c] = ::min(block * kTile + c * 32 + lane, cost.cols - 1);
    for (int first = group * R; first < cost.rows; first += g.groups * R) {
      T sum[R][kColumns] = {};
#pragma unroll
      for (int r = 0; r < R; ++r) x[r] = ::min(first + r, cost.rows - 1);
      if (g.duals != nullptr) rank_one_updates<LOG>(cost, g, x, y, sum);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        T row = 0;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (first + r >= cost.rows || block * kTile + c * 32 + lane >= cost.cols) continue;
          const T q = cost.at(x[r], y[c]), k = LOG ? ::exp(a[y[c]] + b[x[r]] - q / cost.eps) : element(x[r], y[c]);
          const T p = g.grad * k * (LOG ? T(1) : a[y[c]] * b[x[r]]), update = LOG ? sum[r][c] : k * sum[r][c];
          const T dq = g.duals == nullptr ? p : p - (p * q + update) / cost.eps;
          row += dq * (T(1) - q);
          columns[c] += dq * (T(1) - q);
          g.cost[static_cast<int64_t>(x[r]) * cost.cols + y[c]] = g.norm_x ? -dq / cost.norms(x[r], y[c]) : dq;
        }
        if (g.norm_x == nullptr) continue;
        row = warp_sum(row);
        if (lane == 0 && first + r < cost.rows) g.row_parts[static_cast<int64_t>(block) * cost.rows + x[r]] = row;
      }
    }
    for (int c = 0; c < kColumns; ++c) {
      if (g.norm_x && block * kTile + c * 32 + lane < cost.cols) g.column_parts[group * cost.cols + y[c]] = columns[c];
    }
  }
  __syncthreads();
}

// Adds up what write_gradient left of the norms' gradients. A norm below the floor was replaced by it and gets none.
template <typename T>
__device__ inline void write_norm_gradients(const Cost<T>& cost, const Gradient<T>& g) {
  const int blocks = (cost.cols + kTile - 1) / kTile;
  for (int x = threadIdx.x; x < cost.rows; x += kThreads) {
    T sum = 0;
    for (int i = 0; i < blocks; ++i) sum += g.row_parts[static_cast<int64_t>(i) * cost.rows + x];
    g.norm_x[x] = cost.norm_x[x] < static_cast<T>(kNormFloor) ? T(0) : sum / cost.floored(cost.norm_x[x]);
  }
  for (int y = threadIdx.x; y < cost.cols; y += kThreads) {
    T sum = 0;
    for (int i = 0; i < g.groups; ++i) sum += g.column_parts[i * cost.cols + y];
    g.norm_y[y] = cost.norm_y[y] < static_cast<T>(kNormFloor) ? T(0) : sum / cost.floored(cost.norm_y[y]);
  }
}

}  // namespace d2ops::sinkhorn_cuda
