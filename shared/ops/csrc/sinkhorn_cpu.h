// One transport problem on one core. K (or M = -Q / eps in the log domain) lies in a buffer of rows x cols.
#pragma once

#include "sinkhorn.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace d2ops::sinkhorn_cpu {

constexpr int kRows = 4;  // rows handled together: one load of a column vector serves four rows

template <typename F>
inline void each_row_block(int64_t rows, const F& f) {
  int64_t x = 0;
  for (; x + kRows <= rows; x += kRows) f(x, std::integral_constant<int, kRows>());
  for (; x < rows; ++x) f(x, std::integral_constant<int, 1>());
}

// f(start, count): count is the constant vector size but for the last call. Loads of fewer fill up with zeros.
template <typename T, typename F>
inline void each_vector(int64_t n, const F& f) {
  constexpr int64_t size = at::vec::Vectorized<T>::size();
  int64_t i = 0;
  for (; i + size <= n; i += size) f(i, size);
  if (i < n) f(i, n - i);
}

template <typename T>
inline T sum_lanes(const at::vec::Vectorized<T>& v) {
  return at::vec::vec_reduce_all<T>([](const auto& a, const auto& b) { return a + b; }, v);
}

// Q of one problem: given, or one minus the cosine from inner products and inverse norms.
template <typename T>
struct Cost {
  using Vec = at::vec::Vectorized<T>;
  const T* values;
  const T* inverse_x;  // nullptr: `values` are the costs
  const T* inverse_y;
  int64_t rows, cols;
  T eps;

  const T* row(int64_t x, T* buffer) const {
    const T* source = values + x * cols;
    if (inverse_x == nullptr) return source;
    const Vec one(1), scale(-inverse_x[x]);
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      const Vec cosine = Vec::loadu(source + y, n) * Vec::loadu(inverse_y + y, n);
      at::vec::fmadd(cosine, scale, one).store(buffer + y, n);
    });
    return buffer;
  }
};

// out[r] = sum_y k[r][y] v[y]
template <int R, typename T>
inline void dot_rows(const T* k, const T* v, int64_t cols, T* out) {
  using Vec = at::vec::Vectorized<T>;
  Vec sums[R];
  for (int r = 0; r < R; ++r) sums[r] = Vec(0);
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    const Vec value = Vec::loadu(v + y, n);
    for (int r = 0; r < R; ++r) sums[r] = at::vec::fmadd(Vec::loadu(k + r * cols + y, n), value, sums[r]);
  });
  for (int r = 0; r < R; ++r) out[r] = sum_lanes<T>(sums[r]);
}

// sums[y] += sum_r k[r][y] w[r]
template <int R, typename T>
inline void add_rows(T* sums, const T* k, const T* w, int64_t cols) {
  using Vec = at::vec::Vectorized<T>;
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    Vec sum = Vec::loadu(sums + y, n);
    for (int r = 0; r < R; ++r) sum = at::vec::fmadd(Vec::loadu(k + r * cols + y, n), Vec(w[r]), sum);
    sum.store(sums + y, n);
  });
}

template <typename T>
inline void gibbs_row(const T* q, T eps, int64_t cols, T* k) {
  using Vec = at::vec::Vectorized<T>;
  const Vec scale(T(-1) / eps);
  each_vector<T>(cols, [&](int64_t y, int64_t n) { (Vec::loadu(q + y, n) * scale).exp_u20().store(k + y, n); });
}

// Alg. 1 with plans of mass one. Returns <Q, P>; k becomes P where `keep_plan`. K is read once an iteration: while a
// row is in the cache its b follows from its dot product with a, and the row enters the column sums of the next a.
template <typename T>
T forward(const Cost<T>& cost, const SinkhornSizes& sizes, T* k, T* scalings, bool keep_plan) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t rows = cost.rows, cols = cost.cols;
  std::vector<T> columns(cols, T(0)), buffer(cols), uniform(kRows, T(1) / rows);
  each_row_block(rows, [&](int64_t x, auto R) {
    for (int r = 0; r < R; ++r) gibbs_row(cost.row(x + r, buffer.data()), cost.eps, cols, k + (x + r) * cols);
    add_rows<R>(columns.data(), k + x * cols, uniform.data(), cols);
  });
  T *a = scalings, *b = scalings + cols;
  for (int64_t t = 0; t < sizes.iters; ++t) {
    a = scalings + std::min(t, sizes.saved - 1) * sizes.duals();
    b = a + cols;
    for (int64_t y = 0; y < cols; ++y) a[y] = (T(1) / cols) / columns[y];
    std::fill(columns.begin(), columns.end(), T(0));
    each_row_block(rows, [&](int64_t x, auto R) {
      dot_rows<R>(k + x * cols, a, cols, b + x);
      for (int r = 0; r < R; ++r) b[x + r] = (T(1) / rows) / b[x + r];
      if (t + 1 < sizes.iters) add_rows<R>(columns.data(), k + x * cols, b + x, cols);
    });
  }
  double loss = 0;
  for (int64_t x = 0; x < rows; ++x) {
    const T* q = cost.row(x, buffer.data());
    Vec sum(0);
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      const Vec p = Vec::loadu(k + x * cols + y, n) * Vec::loadu(a + y, n) * Vec(b[x]);
      sum = at::vec::fmadd(p, Vec::loadu(q + y, n), sum);
      if (keep_plan) p.store(k + x * cols + y, n);
    });
    loss += sum_lanes<T>(sum);
  }
  return static_cast<T>(loss);
}

// The gradients of the row sums K a and of the column sums K^T b of every iteration, in the layout of `scalings`.
// k is filled with K.
template <typename T>
void unroll(const Cost<T>& cost, const SinkhornSizes& sizes, T grad, const T* scalings, T* k, T* duals) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t rows = cost.rows, cols = cost.cols, last = sizes.iters - 1;
  std::vector<T> columns(cols, T(0)), buffer(cols);
  const T *a = scalings + last * sizes.duals(), *b = a + cols;
  T* row_duals = duals + last * sizes.duals() + cols;
  for (int64_t x = 0; x < rows; ++x) {
    const T* q = cost.row(x, buffer.data());
    gibbs_row(q, cost.eps, cols, k + x * cols);
    Vec sum(0);
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      sum = at::vec::fmadd(Vec::loadu(k + x * cols + y, n) * Vec::loadu(a + y, n), Vec::loadu(q + y, n), sum);
    });
    row_duals[x] = -(grad * sum_lanes<T>(sum) * b[x]) * b[x] * rows;
    const Vec from_plan(grad * b[x]), from_row(row_duals[x]);
    each_vector<T>(cols, [&](int64_t y, int64_t n) {
      const Vec weight = at::vec::fmadd(Vec::loadu(q + y, n), from_plan, from_row);
      at::vec::fmadd(Vec::loadu(k + x * cols + y, n), weight, Vec::loadu(columns.data() + y, n))
          .store(columns.data() + y, n);
    });
  }
  for (int64_t t = last; t >= 0; --t) {
    a = scalings + t * sizes.duals();
    T* column_duals = duals + t * sizes.duals();
    for (int64_t y = 0; y < cols; ++y) column_duals[y] = -(columns[y] * a[y]) * a[y] * cols;
    if (t == 0) return;
    b = a - sizes.duals() + cols;
    row_duals = column_duals - sizes.duals() + cols;
    std::fill(columns.begin(), columns.end(), T(0));
    each_row_block(rows, [&](int64_t x, auto R) {
      dot_rows<R>(k + x * cols, column_duals, cols, row_duals + x);
      for (int r = 0; r < R; ++r) row_duals[x + r] = -(row_duals[x + r] * b[x + r]) * b[x + r] * rows;
      add_rows<R>(columns.data(), k + x * cols, row_duals + x, cols);
    });
  }
}

// The 2 L rank-one updates of dK at once, then dQ = g P - K dK / eps, over K in place. b before the first iteration
// is uniform. q: R rows of cost.
template <int R, typename T>
inline void gradient_rows(const Cost<T>& cost, const SinkhornSizes& sizes, T grad, const T* scalings, const T* duals,
                          int64_t x, const T* const* q, T* k) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t cols = cost.cols, step = sizes.duals();
  const T *a = scalings + (sizes.saved - 1) * step, *b = a + cols;
  T uniform[R];
  std::fill_n(uniform, R, T(1) / cost.rows);
  const Vec scale(T(-1) / cost.eps);
  each_vector<T>(cols, [&](int64_t y, int64_t n) {
    Vec from_b[R], from_a[R];
    for (int r = 0; r < R; ++r) from_b[r] = from_a[r] = Vec(0);
    for (int64_t t = 0; duals != nullptr && t < sizes.iters; ++t) {
      const Vec a_t = Vec::loadu(scalings + t * step + y, n), ds = Vec::loadu(duals + t * step + y, n);
      const T* dr = duals + t * step + cols + x;
      const T* before = t == 0 ? uniform : scalings + (t - 1) * step + cols + x;
      for (int r = 0; r < R; ++r) {
        from_b[r] = at::vec::fmadd(Vec(dr[r]), a_t, from_b[r]);
        from_a[r] = at::vec::fmadd(Vec(before[r]), ds, from_a[r]);
      }
    }
    const Vec last = Vec::loadu(a + y, n);
    for (int r = 0; r < R; ++r) {
      const Vec p = Vec(grad * b[x + r]) * last;
      Vec sum = p;
      if (duals != nullptr) sum = p + (p * Vec::loadu(q[r] + y, n) + from_b[r] + from_a[r]) * scale;
      (sum * Vec::loadu(k + r * cols + y, n)).store(k + r * cols + y, n);
    }
  });
}

// From dQ to the gradients of the inner products (in place) and of the norms. A norm below the floor gets none.
template <typename T>
inline void cosine_row(const Cost<T>& cost, int64_t x, const T* q, T* gradient, T* grad_x, T* grad_y) {
  using Vec = at::vec::Vectorized<T>;
  const Vec one(1), scale(-cost.inverse_x[x]);
  Vec sum(0);
  each_vector<T>(cost.cols, [&](int64_t y, int64_t n) {
    const Vec dq = Vec::loadu(gradient + y, n), inverse = Vec::loadu(cost.inverse_y + y, n);
    const Vec weighted = dq * (one - Vec::loadu(q + y, n));
    sum = sum + weighted;
    at::vec::fmadd(weighted, inverse, Vec::loadu(grad_y + y, n)).store(grad_y + y, n);
    (dq * scale * inverse).store(gradient + y, n);
  });
  grad_x[x] = sum_lanes<T>(sum) * cost.inverse_x[x];
}

}  // namespace d2ops::sinkhorn_cpu
