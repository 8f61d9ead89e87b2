// Tiles of positions as the CPU kernels of soft_roi_pool hold them: rows in float (double for double), padded.
#pragma once

#include "soft_roi_pool.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

namespace d2ops {
namespace roi {

using at::vec::Vectorized;

// Positions are cut the same way whatever the number of threads, so that sums come out the same to the bit.
inline constexpr int64_t kTile = 256;        // positions whose weights and values stay in the first-level cache
inline constexpr int64_t kChunk = 8 * kTile;  // positions of one unit of work
inline constexpr int64_t kRows = 4;            // a block of sums in registers: 16 of 32 with 64 byte vectors, 8 of 16
inline constexpr int64_t kColumns = Vectorized<float>::size() >= 16 ? 4 : 2;  // with shorter ones

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Aligned memory of one thread, zero at the start: rows beyond L or C' are never written and add nothing.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(c10::alloc_cpu(size * sizeof(T)))) {
    std::fill_n(data_.get(), size, T(0));
  }
  operator T*() const {
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const {
      c10::free_cpu(p);
    }
  };
  std::unique_ptr<T, Free> data_;
};

inline Vectorized<float> fast_exp(const Vectorized<float>& x) {
  return x.exp_u20();
}
inline Vectorized<double> fast_exp(const Vectorized<double>& x) {
  return x.exp();
}

// Tiles are whole pairs of vectors: one vector of half numbers is two of floats.
template <typename acc_t>
inline int64_t padded(int64_t width) {
  return round_up(width, 2 * Vectorized<acc_t>::size());
}

// dst[0, n) = src[0, n), and `fill` up to the padded width.
template <typename scalar_t, typename acc_t>
inline void load_row(const scalar_t* src, int64_t n, acc_t* dst, acc_t fill) {
  using Vec = Vectorized<scalar_t>;
  for (int64_t i = 0; i < n; i += Vec::size()) {
    __builtin_prefetch(src + i + kTile, 0, 2);  // the same row's next tile, into the second-level cache
    const Vec x = n - i >= Vec::size() ? Vec::loadu(src + i) : Vec::loadu(src + i, n - i);
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      x.store(dst + i);
    } else {
      const auto [low, high] = at::vec::convert_to_float<scalar_t>(x);
      low.store(dst + i);
      high.store(dst + i + Vectorized<acc_t>::size());
    }
  }
  std::fill(dst + n, dst + padded<acc_t>(n), fill);
}

template <typename scalar_t, typename acc_t>
inline void store_row(const acc_t* src, int64_t n, scalar_t* dst) {
  using Vec = Vectorized<scalar_t>;
  for (int64_t i = 0; i < n; i += Vec::size()) {
    Vec x;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      x = Vec::loadu(src + i);
    } else {
      using Acc = Vectorized<acc_t>;
      x = at::vec::convert_from_float<scalar_t>(Acc::loadu(src + i), Acc::loadu(src + i + Acc::size()));
    }
    n - i >= Vec::size() ? x.store(dst + i) : x.store(dst + i, n - i);
  }
}

template <typename acc_t>
inline acc_t sum_of(const acc_t* lanes) {
  const auto add = [](const Vectorized<acc_t>& a, const Vectorized<acc_t>& b) { return a + b; };
  return at::vec::vec_reduce_all<acc_t>(add, Vectorized<acc_t>::loadu(lanes));
}

// 0 where the mask is true, -inf where it is false: added to scores it takes a position out.
template <typename acc_t>
inline void load_bias(const bool* mask, int64_t n, acc_t* bias) {
  for (int64_t i = 0; i < n; ++i) {
    bias[i] = mask[i] ? acc_t(0) : -std::numeric_limits<acc_t>::infinity();
  }
  std::fill(bias + n, bias + padded<acc_t>(n), acc_t(0));
}

// Adds the bias, where there is one, and returns the largest value (NaN where there is a NaN).
template <typename acc_t>
inline acc_t add_bias_max(acc_t* row, const acc_t* bias, int64_t width) {
  using Vec = Vectorized<acc_t>;
  Vec top(-std::numeric_limits<acc_t>::infinity());
  for (int64_t i = 0; i < width; i += Vec::size()) {
    Vec x = Vec::loadu(row + i);
    if (bias) {
      x = x + Vec::loadu(bias + i);
      x.store(row + i);
    }
    top = at::vec::maximum(top, x);
  }
  const auto larger = [](const Vec& a, const Vec& b) { return at::vec::maximum(a, b); };
  return at::vec::vec_reduce_all<acc_t>(larger, top);
}

// Everything of one call that does not change from tile to tile. M = exp(scores * scale - stats[0]) / stats[1].
template <typename scalar_t>
struct Problem {
  const scalar_t *scores, *values;
  const bool* mask;  // null: every position takes part
  RoiSizes size;
  at::opmath_type<scalar_t> scale;  // 1 / temperature

  const scalar_t* score_row(int64_t n, int64_t l, int64_t d) const {
    return scores + ((n * size.groups + l) * size.maps + d) * size.positions;
  }
  const scalar_t* value_row(int64_t n, int64_t c, int64_t d) const {
    return values + ((n * size.channels + c) * size.maps + d) * size.positions;
  }
};

template <typename scalar_t>
Problem<scalar_t> make_problem(const Tensor& scores, const Tensor& values, const Tensor& mask, const RoiSizes& size,
                               double temperature) {
  return {scores.const_data_ptr<scalar_t>(), values.const_data_ptr<scalar_t>(),
          mask.defined() ? mask.const_data_ptr<bool>() : nullptr, size,
          static_cast<at::opmath_type<scalar_t>>(1 / temperature)};
}

// One row of maps, M: `map` counts the N * L * D maps, `stats` are its largest score and its sum, `bias` is scratch.
template <typename scalar_t>
void load_weights(const Problem<scalar_t>& p, int64_t map, int64_t start, int64_t width,
                  const at::opmath_type<scalar_t>* stats, at::opmath_type<scalar_t>* bias,
                  at::opmath_type<scalar_t>* row) {
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;
  load_row<scalar_t, acc_t>(p.scores + map * p.size.positions + start, width, row,
                            -std::numeric_limits<acc_t>::infinity());
  if (p.mask) {
    const int64_t n = map / (p.size.groups * p.size.maps);
    load_bias<acc_t>(p.mask + n * p.size.positions + start, width, bias);
  }
  const Vec scale(p.scale), top(-stats[0]), part(1 / stats[1]);
  for (int64_t i = 0; i < padded<acc_t>(width); i += Vec::size()) {
    Vec x = Vec::loadu(row + i);
    if (p.mask) {
      x = x + Vec::loadu(bias + i);
    }
    (fast_exp(at::vec::fmadd(x, scale, top)) * part).store(row + i);
  }
}

}  // namespace roi
}  // namespace d2ops
