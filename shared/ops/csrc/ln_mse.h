// What the CPU and the CUDA kernels of ln_mse share: the checks, the layout, and the closed form of one image.
#pragma once

#include "common.h"

#include <c10/core/MemoryFormat.h>
#include <c10/macros/Macros.h>

#include <cmath>

namespace d2ops {

void check_ln_mse(const Tensor& x, const Tensor& y, double eps);
void check_ln_mse_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& moments, double eps);

// The order of an image's elements does not matter: where both sides are channels_last they are read as they lie.
at::MemoryFormat ln_mse_layout(const Tensor& x, const Tensor& y);

// An image's moments, as saved for the backward pass.
enum { kMeanX, kMeanY, kVarX, kVarY, kCov, kMoments };

// Sums of x, y, xx, yy, xy over an image. Both sides are taken about a shift, in double.
enum { kSumX, kSumY, kSumXX, kSumYY, kSumXY, kSums };

// Sums about `from` of `count` elements become sums about `to`, and are added to `sums`. Accurate in double: the shifts
// are elements of the data, so (shift - mean)^2 is at most count x variance, and nothing cancels beyond that.
template <typename acc_t>
C10_HOST_DEVICE inline void add_shifted(const acc_t* part, double count, double delta_x, double delta_y, double* sums) {
  const double x = part[kSumX], y = part[kSumY];
  sums[kSumX] += x + count * delta_x;
  sums[kSumY] += y + count * delta_y;
  sums[kSumXX] += part[kSumXX] + delta_x * (2 * x + count * delta_x);
  sums[kSumYY] += part[kSumYY] + delta_y * (2 * y + count * delta_y);
  sums[kSumXY] += part[kSumXY] + delta_x * y + delta_y * x + count * delta_x * delta_y;
}

// Comparisons are written so that NaN stays NaN.
C10_HOST_DEVICE inline double not_negative(double value) { return value < 0 ? 0 : value; }

C10_HOST_DEVICE inline void moments_of(const double* sums, double count, double shift_x, double shift_y,
                                       double* moments) {
  const double x = sums[kSumX] / count, y = sums[kSumY] / count;
  moments[kMeanX] = shift_x + x;
  moments[kMeanY] = shift_y + y;
  moments[kVarX] = not_negative(sums[kSumXX] / count - x * x);
  moments[kVarY] = not_negative(sums[kSumYY] / count - y * y);
  moments[kCov] = sums[kSumXY] / count - x * y;
}

// Sum over an image of (LN(x) - LN(y))^2 = count * (v_x / s_x^2 + v_y / s_y^2 - 2 c / (s_x s_y)), s^2 = v + eps.
// A sum of squares: what rounding leaves below 0 is 0.
C10_HOST_DEVICE inline double squared_distance(const double* moments, double count, double eps) {
  const double xx = moments[kVarX] + eps, yy = moments[kVarY] + eps;
  const double value = moments[kVarX] / xx + moments[kVarY] / yy - 2 * moments[kCov] / std::sqrt(xx * yy);
  return not_negative(count * value);
}

// The gradient of that sum with respect to one side p, q being the other: own * (p - mean_p) + other * (q - mean_q)
// + rest. `rest` carries what rounding the means to acc_t leaves behind, which matters where a mean is large.
template <typename acc_t>
struct Line {
  acc_t own, other, mean_p, mean_q, rest;
};

template <typename acc_t>
C10_HOST_DEVICE inline Line<acc_t> gradient_line(const double* moments, bool of_x, double grad, double eps) {
  const double mean_p = moments[of_x ? kMeanX : kMeanY], mean_q = moments[of_x ? kMeanY : kMeanX];
  const double pp = moments[of_x ? kVarX : kVarY] + eps, qq = moments[of_x ? kVarY : kVarX] + eps;
  const double cross = std::sqrt(pp * qq);
  const double own = 2 * grad * (eps / pp + moments[kCov] / cross) / pp;  // eps / pp = 1 - v_p / s_p^2
  const double other = -2 * grad / cross;
  Line<acc_t> line{acc_t(own), acc_t(other), acc_t(mean_p), acc_t(mean_q), acc_t(0)};
  line.rest = acc_t(own * (double(line.mean_p) - mean_p) + other * (double(line.mean_q) - mean_q));
  return line;
}

}  // namespace d2ops
