// The same problem in the log domain: safe where exp(-Q / eps) leaves the range of the type. Scaling vectors are log a
// and log b, m is M = -Q / eps. Slower: every use of the matrix takes exponentials.
#pragma once

#include "sinkhorn_cpu.h"

#include <limits>

namespace d2ops::sinkhorn_cpu {

template <typename T>
inline at::vec::Vectorized<T> loadu(const T* from, int64_t n) {
  return at::vec::Vectorized<T>::loadu(from, n);
}

// sum_y exp(m_y + v_y + shift) w_y, w = 1 where nullptr. Lanes beyond the row add nothing.
template <typename T>
inline T sum_exp(const T* m, const T* v, T shift, const T* w, int64_t cols) {
  using Vec = at::vec::Vectorized<T>;
  const Vec offset(shift), zero(0);
  Vec sum(0);
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    const Vec value = (loadu(m + y, n) + loadu(v + y, n) + offset).exp();
    sum = w ? at::vec::fmadd(value, loadu(w + y, n), sum) : Vec::set(sum, sum + value, n);
  });
  return sum_lanes<T>(sum);
}

// sums[y] += w exp(m_y + v_y + shift)
template <typename T>
inline void add_exp(T* sums, const T* m, const T* v, T shift, T w, int64_t cols) {
  using Vec = at::vec::Vectorized<T>;
  const Vec offset(shift), weight(w);
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    const Vec value = (loadu(m + y, n) + loadu(v + y, n) + offset).exp();
    at::vec::fmadd(value, weight, loadu(sums + y, n)).store(sums + y, n);
  });
}

// log sum_y exp(m_y + a_y), about the row's own maximum
template <typename T>
inline T row_lse(const T* m, const T* a, int64_t cols) {
  using Vec = at::vec::Vectorized<T>;
  Vec top(-std::numeric_limits<T>::infinity());
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    top = Vec::set(top, at::vec::maximum(top, loadu(m + y, n) + loadu(a + y, n)), n);
  });
  const auto larger = [](const auto& u, const auto& v) { return at::vec::maximum(u, v); };
  const T largest = at::vec::vec_reduce_all<T>(larger, top);
  return largest + std::log(sum_exp<T>(m, a, -largest, nullptr, cols));
}

// out[y] = log sum_x exp(m_xy + b_x), about each column's own maximum
template <typename T>
inline void column_lse(const T* m, const T* b, int64_t rows, int64_t cols, T* top, T* out) {
  using Vec = at::vec::Vectorized<T>;
  std::fill_n(top, cols, -std::numeric_limits<T>::infinity());
  for (int64_t x = 0; x < rows; ++x) {
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      at::vec::maximum(loadu(top + y, n), loadu(m + x * cols + y, n) + Vec(b[x])).store(top + y, n);
    });
  }
  for (int64_t y = 0; y < cols; ++y) top[y] = -top[y];
  std::fill_n(out, cols, T(0));
  for (int64_t x = 0; x < rows; ++x) add_exp<T>(out, m + x * cols, top, b[x], T(1), cols);
  for (int64_t y = 0; y < cols; ++y) out[y] = std::log(out[y]) - top[y];
}

template <typename T>
inline void log_gibbs_row(const T* q, T eps, int64_t cols, T* m) {
  for (int64_t y = 0; y < cols; ++y) m[y] = -q[y] / eps;
}

template <typename T>
T log_forward(const Cost<T>& cost, const SinkhornSizes& sizes, T* m, T* scalings, bool keep_plan) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t rows = cost.rows, cols = cost.cols;
  const T log_rows = std::log(static_cast<T>(rows)), log_cols = std::log(static_cast<T>(cols));
  std::vector<T> buffer(cols);
  for (int64_t x = 0; x < rows; ++x) log_gibbs_row(cost.row(x, buffer.data()), cost.eps, cols, m + x * cols);
  T *a = scalings, *b = scalings + cols;
  for (int64_t t = 0; t < sizes.iters; ++t) {
    std::vector<T> before(rows, -log_rows);
    if (t > 0) std::copy_n(b, rows, before.begin());
    a = scalings + std::min(t, sizes.saved - 1) * sizes.duals();
    b = a + cols;
    column_lse(m, before.data(), rows, cols, buffer.data(), a);
    for (int64_t y = 0; y < cols; ++y) a[y] = -log_cols - a[y];
    for (int64_t x = 0; x < rows; ++x) b[x] = -log_rows - row_lse(m + x * cols, a, cols);
  }
  double loss = 0;
  for (int64_t x = 0; x < rows; ++x) {
    const T* q = cost.row(x, buffer.data());
    Vec sum(0);
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      const Vec p = (loadu(m + x * cols + y, n) + loadu(a + y, n) + Vec(b[x])).exp();
      sum = at::vec::fmadd(p, loadu(q + y, n), sum);
      if (keep_plan) p.store(m + x * cols + y, n);
    });
    loss += sum_lanes<T>(sum);
  }
  return static_cast<T>(loss);
}

// The gradients of the row and column sums' logarithms, as `duals`: times rows for b, times cols for a. m is filled.
template <typename T>
void log_unroll(const Cost<T>& cost, const SinkhornSizes& sizes, T grad, const T* scalings, T* m, T* duals) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t rows = cost.rows, cols = cost.cols, last = sizes.iters - 1;
  std::vector<T> columns(cols, T(0)), buffer(cols);
  const T *a = scalings + last * sizes.duals(), *b = a + cols;
  T* row_duals = duals + last * sizes.duals() + cols;
  for (int64_t x = 0; x < rows; ++x) {
    const T* q = cost.row(x, buffer.data());
    T* row = m + x * cols;
    log_gibbs_row(q, cost.eps, cols, row);
    row_duals[x] = grad * sum_exp<T>(row, a, b[x], q, cols) * rows;
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      const Vec p = (loadu(row + y, n) + loadu(a + y, n) + Vec(b[x])).exp();
      const Vec weight = loadu(q + y, n) * Vec(grad) - Vec(row_duals[x]);
      at::vec::fmadd(p, weight, loadu(columns.data() + y, n)).store(columns.data() + y, n);
    });
  }
  for (int64_t t = last; t >= 0; --t) {
    a = scalings + t * sizes.duals();
    T* column_duals = duals + t * sizes.duals();
    for (int64_t y = 0; y < cols; ++y) column_duals[y] = columns[y] * cols;
    if (t == 0) return;
    const T* a_before = a - sizes.duals();
    b = a_before + cols;
    row_duals = column_duals - sizes.duals() + cols;
    std::fill(columns.begin(), columns.end(), T(0));
    for (int64_t x = 0; x < rows; ++x) {
      row_duals[x] = -sum_exp<T>(m + x * cols, a, b[x], column_duals, cols) * rows;
      add_exp<T>(columns.data(), m + x * cols, a_before, b[x], -row_duals[x], cols);
    }
  }
}

// Row x of M becomes the row of dQ = g P - dM / eps.
template <typename T>
inline void log_gradient_row(const Cost<T>& cost, const SinkhornSizes& sizes, T grad, const T* scalings,
                             const T* duals, int64_t x, const T* q, T* m) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t cols = cost.cols, step = sizes.duals();
  const T *a = scalings + (sizes.saved - 1) * step, *b = a + cols;
  const T uniform = -std::log(static_cast<T>(cost.rows));
  const Vec scale(T(-1) / cost.eps);
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    const Vec value = loadu(m + y, n), p = (value + loadu(a + y, n) + Vec(b[x])).exp() * Vec(grad);
    Vec sum = p * loadu(q + y, n);
    for (int64_t t = 0; duals != nullptr && t < sizes.iters; ++t) {
      const T *a_t = scalings + t * step, *dual = duals + t * step;
      const Vec base = value + loadu(a_t + y, n), now(a_t[cols + x]), before(t == 0 ? uniform : a_t[cols + x - step]);
      sum = sum - Vec(dual[cols + x]) * (base + now).exp() - loadu(dual + y, n) * (base + before).exp();
    }
    (duals != nullptr ? at::vec::fmadd(sum, scale, p) : p).store(m + y, n);
  });
}

}  // namespace d2ops::sinkhorn_cpu
