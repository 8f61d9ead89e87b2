// Soft RoI pooling, backward on the CPU: one pass over tiles of positions that are independent of each other.
#include "soft_roi_pool_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace d2ops {
namespace {

using namespace roi;

// out[r, p] = sum over k of matrix[k, r] * rows[k, p], for whole blocks of rows of one tile.
template <typename acc_t>
void multiply(const acc_t* matrix, int64_t rows, int64_t depth, const acc_t* in, acc_t* out, int64_t width) {
  using Vec = Vectorized<acc_t>;
  for (int64_t first = 0; first < rows; first += kRows) {
    for (int64_t i = 0; i < width; i += 2 * Vec::size()) {
      Vec sum[kRows][2];
      for (auto& row : sum) {
        row[0] = row[1] = Vec(0);
      }
      for (int64_t k = 0; k < depth; ++k) {
        const Vec low = Vec::loadu(in + k * kTile + i), high = Vec::loadu(in + k * kTile + i + Vec::size());
        for (int64_t r = 0; r < kRows; ++r) {
          const Vec factor(matrix[k * rows + first + r]);
          sum[r][0] = at::vec::fmadd(factor, low, sum[r][0]);
          sum[r][1] = at::vec::fmadd(factor, high, sum[r][1]);
        }
      }
      for (int64_t r = 0; r < kRows; ++r) {
        sum[r][0].store(out + (first + r) * kTile + i);
        sum[r][1].store(out + (first + r) * kTile + i + Vec::size());
      }
    }
  }
}

// The gradients of one call and what they are made of; grad_maps, grad_scores and grad_values may be null.
template <typename scalar_t>
struct Gradients {
  using acc_t = at::opmath_type<scalar_t>;
  const scalar_t* grad_pooled;
  const acc_t *grad_maps, *per_map, *stats;
  scalar_t *grad_scores, *grad_values;
};

// means[n, l, d] = sum over p of M * dM, which is sum over c of grad_pooled * per_map, and the part through the maps.
template <typename scalar_t>
void mean_gradients(const Problem<scalar_t>& p, const Gradients<scalar_t>& g, at::opmath_type<scalar_t>* means) {
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;
  const RoiSizes& z = p.size;
  const int64_t grain = g.grad_maps ? std::max<int64_t>(1, 8192 / z.positions) : 1024;
  at::parallel_for(0, z.images * z.groups * z.maps, grain, [&](int64_t first, int64_t last) {
    Buffer<acc_t> row(kTile), grad(kTile), bias(kTile);
    for (int64_t map = first; map < last; ++map) {
      acc_t sum = 0;
      for (int64_t c = 0; c < z.channels; ++c) {
        sum += static_cast<acc_t>(g.grad_pooled[map / z.maps * z.channels + c]) * g.per_map[map * z.channels + c];
      }
      Vec lanes(0);
      for (int64_t start = 0; g.grad_maps && start < z.positions; start += kTile) {
        const int64_t width = std::min(kTile, z.positions - start);
        load_weights<scalar_t>(p, map, start, width, g.stats + map * 2, bias, row);
        load_row<acc_t, acc_t>(g.grad_maps + map * z.positions + start, width, grad, acc_t(0));
        for (int64_t i = 0; i < padded<acc_t>(width); i += Vec::size()) {
          lanes = at::vec::fmadd(Vec::loadu(row + i), Vec::loadu(grad + i), lanes);
        }
      }
      acc_t through_maps[Vec::size()];
      lanes.store(through_maps);
      means[map] = sum + sum_of<acc_t>(through_maps);
    }
  });
}

// One thread's tile: weights M [L], values [C'] and, made from them, dM [L] and the gradient of the values [C'].
template <typename scalar_t>
class TileGradient {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;

  TileGradient(const Problem<scalar_t>& p, const Gradients<scalar_t>& g, const acc_t* means)
      : p_(p),
        g_(g),
        means_(means),
        rows_(round_up(p.size.groups, kRows)),
        columns_(round_up(p.size.channels, kRows)),
        by_channel_(p.size.channels * rows_),
        by_group_(p.size.groups * columns_),
        weights_(rows_ * kTile),
        values_(columns_ * kTile),
        result_(std::max(rows_, columns_) * kTile),
        grad_(kTile),
        bias_(kTile) {}

  // grad_pooled of image n as two padded matrices: [C', L] and [L, C'].
  void set_image(int64_t n) {
    for (int64_t l = 0; l < p_.size.groups; ++l) {
      for (int64_t c = 0; c < p_.size.channels; ++c) {
        const acc_t grad = g_.grad_pooled[(n * p_.size.groups + l) * p_.size.channels + c];
        by_channel_[c * rows_ + l] = by_group_[l * columns_ + c] = grad;
      }
    }
  }

  void run(int64_t n, int64_t d, int64_t start, int64_t width) {
    const RoiSizes& z = p_.size;
    for (int64_t l = 0; l < z.groups; ++l) {
      const int64_t map = (n * z.groups + l) * z.maps + d;
      load_weights<scalar_t>(p_, map, start, width, g_.stats + map * 2, bias_, weights_ + l * kTile);
    }
    if (g_.grad_values) {
      multiply<acc_t>(by_group_, columns_, z.groups, weights_, result_, padded<acc_t>(width));
      for (int64_t c = 0; c < z.channels; ++c) {
        const int64_t row = (n * z.channels + c) * z.maps + d;
        store_row<scalar_t, acc_t>(result_ + c * kTile, width, g_.grad_values + row * z.positions + start);
      }
    }
    if (g_.grad_scores) {
      for (int64_t c = 0; c < z.channels; ++c) {
        load_row<scalar_t, acc_t>(p_.value_row(n, c, d) + start, width, values_ + c * kTile, acc_t(0));
      }
      multiply<acc_t>(by_channel_, rows_, z.channels, values_, result_, padded<acc_t>(width));
      for (int64_t l = 0; l < z.groups; ++l) {
        score_gradient((n * z.groups + l) * z.maps + d, start, width, weights_ + l * kTile, result_ + l * kTile);
      }
    }
  }

 private:
  // M * (dM - mean) / T
  void score_gradient(int64_t map, int64_t start, int64_t width, const acc_t* weights, acc_t* row) {
    if (g_.grad_maps) {
      load_row<acc_t, acc_t>(g_.grad_maps + map * p_.size.positions + start, width, grad_, acc_t(0));
    }
    const Vec mean(means_[map]), scale(p_.scale);
    for (int64_t i = 0; i < width; i += Vec::size()) {
      Vec grad = Vec::loadu(row + i) - mean;
      if (g_.grad_maps) {
        grad = grad + Vec::loadu(grad_ + i);
      }
      (Vec::loadu(weights + i) * grad * scale).store(row + i);
    }
    store_row<scalar_t, acc_t>(row, width, g_.grad_scores + map * p_.size.positions + start);
  }

  const Problem<scalar_t>& p_;
  const Gradients<scalar_t>& g_;
  const acc_t* means_;
  const int64_t rows_, columns_;
  Buffer<acc_t> by_channel_, by_group_, weights_, values_, result_, grad_, bias_;
};

template <typename scalar_t>
void pool_backward(const Problem<scalar_t>& problem, const Gradients<scalar_t>& gradients, const Tensor& means) {
  using acc_t = at::opmath_type<scalar_t>;
  const RoiSizes& z = problem.size;
  mean_gradients<scalar_t>(problem, gradients, means.mutable_data_ptr<acc_t>());
  const int64_t tiles = ceil_div(z.positions, kTile), grain = std::max<int64_t>(1, kChunk / z.positions);
  at::parallel_for(0, z.images * z.maps * tiles, grain, [&](int64_t first, int64_t last) {
    TileGradient<scalar_t> tile(problem, gradients, means.const_data_ptr<acc_t>());
    int64_t image = -1;
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / tiles / z.maps, start = i % tiles * kTile;
      if (n != image) {
        tile.set_image(image = n);
      }
      tile.run(n, i / tiles % z.maps, start, std::min(kTile, z.positions - start));
    }
  });
}

std::tuple<Tensor, Tensor> soft_roi_pool_backward_cpu(const Tensor& grad_pooled_in,
                                                      const std::optional<Tensor>& grad_maps_in,
                                                      const Tensor& scores_in, const Tensor& values_in,
                                                      const std::optional<Tensor>& mask_in, const Tensor& per_map_in,
                                                      const Tensor& stats_in, double temperature, bool need_scores,
                                                      bool need_values) {
  const RoiSizes z = check_soft_roi_pool_backward(grad_pooled_in, grad_maps_in, scores_in, values_in, mask_in,
                                                  per_map_in, stats_in, temperature);
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
  D2OPS_DISPATCH(scores.scalar_type(), "soft_roi_pool_backward_cpu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const Gradients<scalar_t> gradients{grad_pooled.const_data_ptr<scalar_t>(),
                                        grad_maps.defined() ? grad_maps.const_data_ptr<acc_t>() : nullptr,
                                        per_map.const_data_ptr<acc_t>(),
                                        stats.const_data_ptr<acc_t>(),
                                        need_scores ? grad_scores.mutable_data_ptr<scalar_t>() : nullptr,
                                        need_values ? grad_values.mutable_data_ptr<scalar_t>() : nullptr};
    pool_backward<scalar_t>(make_problem<scalar_t>(scores, values, mask, z, temperature), gradients, means);
  });
  return {grad_scores, grad_values};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("soft_roi_pool_backward", soft_roi_pool_backward_cpu);
}

}  // namespace d2ops
