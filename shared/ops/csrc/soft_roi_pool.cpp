// Soft RoI pooling: schema, checks and, on the CPU, the forward pass: one over scores and values, online softmax.
#include "soft_roi_pool_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace d2ops {

namespace {
constexpr const char* kOp = "soft_roi_pool";
}

RoiSizes check_soft_roi_pool(const Tensor& scores, const Tensor& values, double temperature,
                             const std::optional<Tensor>& mask) {
  TORCH_CHECK_VALUE(scores.dim() == 5, kOp, ": scores has shape ", scores.sizes(),
                    "; expected 5 dimensions (N, L, D, H, W).");
  TORCH_CHECK_VALUE(values.dim() == 5, kOp, ": values has shape ", values.sizes(),
                    "; expected 5 dimensions (N, C', D, H, W).");
  const auto s = scores.sizes(), v = values.sizes();
  TORCH_CHECK_VALUE(s[0] == v[0] && s.slice(2) == v.slice(2), kOp, ": values has shape ", v, " and scores ", s,
                    "; they must agree in all sizes but the second (N, D, H, W).");
  TORCH_CHECK_VALUE(std::min({s[1], s[2], s[3], s[4], v[1]}) > 0, kOp, ": scores has shape ", s, " and values ", v,
                    "; no size but N may be 0.");
  check_same_dtype(kOp, {{"scores", &scores}, {"values", &values}});
  check_same_device(kOp, {{"scores", &scores}, {"values", &values}});
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature), kOp, ": temperature is ", temperature,
                    "; expected a finite number above 0.");
  if (mask) {
    TORCH_CHECK_VALUE(mask->dim() == 3 && mask->size(0) == s[0] && mask->size(1) == s[3] && mask->size(2) == s[4], kOp,
                      ": mask has shape ", mask->sizes(), "; expected (N, H, W) of scores, [", s[0], ", ", s[3], ", ",
                      s[4], "].");
    TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, kOp, ": mask has dtype ", mask->scalar_type(),
                     "; expected bool, True where a position takes part.");
    check_same_device(kOp, {{"scores", &scores}, {"mask", &*mask}});
  }
  return {s[0], s[1], v[1], s[2], s[3] * s[4]};
}

RoiSizes check_soft_roi_pool_backward(const Tensor& grad_pooled, const std::optional<Tensor>& grad_maps,
                                      const Tensor& scores, const Tensor& values, const std::optional<Tensor>& mask,
                                      const Tensor& per_map, const Tensor& stats, double temperature) {
  const RoiSizes z = check_soft_roi_pool(scores, values, temperature, mask);
  const auto acc = at::toOpMathType(scores.scalar_type());
  const auto expect = [](const char* name, const Tensor& x, at::IntArrayRef sizes, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(x.sizes() == sizes && x.scalar_type() == dtype, kOp, "_backward: ", name, " has shape ",
                      x.sizes(), " and dtype ", x.scalar_type(), "; expected ", sizes, " and ", dtype, ".");
  };
  expect("grad_pooled", grad_pooled, {z.images, z.groups, z.channels}, scores.scalar_type());
  expect("per_map", per_map, {z.images, z.groups, z.maps, z.channels}, acc);
  expect("stats", stats, {z.images, z.groups, z.maps, 2}, acc);
  check_same_device(
      kOp, {{"scores", &scores}, {"grad_pooled", &grad_pooled}, {"per_map", &per_map}, {"stats", &stats}});
  if (grad_maps) {
    expect("grad_maps", *grad_maps, scores.sizes(), acc);
    check_same_device(kOp, {{"scores", &scores}, {"grad_maps", &*grad_maps}});
  }
  return z;
}

namespace {

using namespace roi;

// Running sums of one chunk: for each group l the largest score so far (scaled), sum of e and sum of e * value, where
// e = exp(score * scale - largest). Sums are kept by vector lane and added up at the end.
template <typename scalar_t>
class ChunkPool {
 public:
  using acc_t = at::opmath_type<scalar_t>;
  using Vec = Vectorized<acc_t>;

  explicit ChunkPool(const Problem<scalar_t>& problem)
      : p_(problem),
        rows_(round_up(p_.size.groups, kRows)),
        columns_(round_up(p_.size.channels, kColumns)),
        weights_(rows_ * kTile),
        values_(columns_ * kTile),
        bias_(kTile),
        sums_(rows_ * columns_ * Vec::size()),
        totals_(rows_ * Vec::size()),
        top_(rows_) {}

  // Writes largest [L], total [L], sums [L, C'] of positions [begin, end) of image n, map d.
  void run(int64_t n, int64_t d, int64_t begin, int64_t end, acc_t* out) {
    std::fill_n(static_cast<acc_t*>(sums_), rows_ * columns_ * Vec::size(), acc_t(0));
    std::fill_n(static_cast<acc_t*>(totals_), rows_ * Vec::size(), acc_t(0));
    std::fill_n(static_cast<acc_t*>(top_), rows_, std::numeric_limits<acc_t>::lowest());
    for (int64_t start = begin; start < end; start += kTile) {
      add_tile(n, d, start, std::min(kTile, end - start));
    }
    const int64_t groups = p_.size.groups, channels = p_.size.channels;
    for (int64_t l = 0; l < groups; ++l) {
      out[l] = top_[l];
      out[groups + l] = sum_of<acc_t>(totals_ + l * Vec::size());
      for (int64_t c = 0; c < channels; ++c) {
        out[(2 + c) * groups + l] = sum_of<acc_t>(sums_ + (l * columns_ + c) * Vec::size());
      }
    }
  }

 private:
  void add_tile(int64_t n, int64_t d, int64_t start, int64_t width) {
    const int64_t wide = padded<acc_t>(width);
    const acc_t* bias = p_.mask ? static_cast<acc_t*>(bias_) : nullptr;
    if (p_.mask) {
      load_bias<acc_t>(p_.mask + n * p_.size.positions + start, width, bias_);
    }
    for (int64_t c = 0; c < p_.size.channels; ++c) {
      load_row<scalar_t, acc_t>(p_.value_row(n, c, d) + start, width, values_ + c * kTile, acc_t(0));
    }
    for (int64_t l = 0; l < p_.size.groups; ++l) {
      acc_t* row = weights_ + l * kTile;
      load_row<scalar_t, acc_t>(p_.score_row(n, l, d) + start, width, row, -std::numeric_limits<acc_t>::infinity());
      raise_top(l, add_bias_max<acc_t>(row, bias, wide) * p_.scale);
      to_weights(l, row, wide);
    }
    add_products(wide);
  }

  // A larger score than any before: shrink what was summed relative to the old one. NaN stays.
  void raise_top(int64_t l, acc_t top) {
    if (top <= top_[l]) {
      return;
    }
    const Vec factor(std::exp(top_[l] - top));
    top_[l] = top;
    (Vec::loadu(totals_ + l * Vec::size()) * factor).store(totals_ + l * Vec::size());
    for (int64_t c = 0; c < p_.size.channels; ++c) {
      acc_t* sum = sums_ + (l * columns_ + c) * Vec::size();
      (Vec::loadu(sum) * factor).store(sum);
    }
  }

  void to_weights(int64_t l, acc_t* row, int64_t width) {
    const Vec scale(p_.scale), top(-top_[l]);
    Vec total = Vec::loadu(totals_ + l * Vec::size());
    for (int64_t i = 0; i < width; i += Vec::size()) {
      const Vec e = fast_exp(at::vec::fmadd(Vec::loadu(row + i), scale, top));
      e.store(row + i);
      total = total + e;
    }
    total.store(totals_ + l * Vec::size());
  }

  void add_products(int64_t width) {
    for (int64_t l = 0; l < rows_; l += kRows) {
      for (int64_t c = 0; c < columns_; c += kColumns) {
        Vec sum[kRows][kColumns];
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t k = 0; k < kColumns; ++k) {
            sum[r][k] = Vec::loadu(sums_ + ((l + r) * columns_ + c + k) * Vec::size());
          }
        }
        const acc_t *weights = weights_ + l * kTile, *values = values_ + c * kTile;
        for (int64_t i = 0; i < width; i += Vec::size()) {
          Vec e[kRows];
          for (int64_t r = 0; r < kRows; ++r) {
            e[r] = Vec::loadu(weights + r * kTile + i);
          }
          for (int64_t k = 0; k < kColumns; ++k) {
            const Vec y = Vec::loadu(values + k * kTile + i);
            for (int64_t r = 0; r < kRows; ++r) {
              sum[r][k] = at::vec::fmadd(e[r], y, sum[r][k]);
            }
          }
        }
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t k = 0; k < kColumns; ++k) {
            sum[r][k].store(sums_ + ((l + r) * columns_ + c + k) * Vec::size());
          }
        }
      }
    }
  }

  const Problem<scalar_t>& p_;
  const int64_t rows_, columns_;
  Buffer<acc_t> weights_, values_, bias_, sums_, totals_, top_;
};

// Adds up the chunks of image n, group l in their order: writes per_map [D, C'], stats [D, 2], pooled [C'].
template <typename scalar_t, typename acc_t>
bool combine_chunks(const RoiSizes& z, const acc_t* partial, int64_t chunks, bool masked, int64_t l, acc_t* per_map,
                    acc_t* stats, scalar_t* pooled) {
  const int64_t step = (2 + z.channels) * z.groups;
  bool finite = true;
  std::vector<acc_t> weight(chunks);
  for (int64_t d = 0; d < z.maps; ++d) {
    const acc_t* part = partial + d * chunks * step + l;
    acc_t top = part[0];
    for (int64_t k = 1; k < chunks; ++k) {
      top = part[k * step] <= top ? top : part[k * step];
    }
    const auto add_up = [&](int64_t row) {
      acc_t sum = 0;
      for (int64_t k = 0; k < chunks; ++k) {
        sum += weight[k] * part[k * step + row * z.groups];
      }
      return sum;
    };
    for (int64_t k = 0; k < chunks; ++k) {
      weight[k] = std::exp(part[k * step] - top);
    }
    const acc_t total = add_up(1);
    const bool nowhere = masked && total == 0;  // no valid position: the group pools nothing
    stats[d * 2] = top;
    stats[d * 2 + 1] = nowhere ? std::numeric_limits<acc_t>::infinity() : total;
    for (int64_t c = 0; c < z.channels; ++c) {
      per_map[d * z.channels + c] = nowhere ? acc_t(0) : add_up(2 + c) / total;
    }
  }
  for (int64_t c = 0; c < z.channels; ++c) {
    acc_t sum = 0;
    for (int64_t d = 0; d < z.maps; ++d) {
      sum += per_map[d * z.channels + c];
    }
    finite = finite && std::isfinite(sum);
    pooled[c] = static_cast<scalar_t>(sum);
  }
  return finite;
}

// Returns whether all results are finite.
template <typename scalar_t>
bool pool(const Problem<scalar_t>& problem, const Tensor& pooled, const Tensor& per_map, const Tensor& stats) {
  using acc_t = at::opmath_type<scalar_t>;
  const RoiSizes& z = problem.size;
  const int64_t chunks = ceil_div(z.positions, kChunk), step = (2 + z.channels) * z.groups;
  const Tensor partial = at::empty({z.images * z.maps * chunks * step}, per_map.options());
  acc_t* part = partial.mutable_data_ptr<acc_t>();
  at::parallel_for(0, z.images * z.maps * chunks, 1, [&](int64_t first, int64_t last) {
    ChunkPool<scalar_t> chunk(problem);
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % chunks * kChunk, end = std::min(begin + kChunk, z.positions);
      chunk.run(i / chunks / z.maps, i / chunks % z.maps, begin, end, part + i * step);
    }
  });
  std::atomic<bool> finite{true};
  at::parallel_for(0, z.images * z.groups, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const acc_t* image = part + i / z.groups * z.maps * chunks * step;
      if (!combine_chunks<scalar_t, acc_t>(z, image, chunks, problem.mask != nullptr, i % z.groups,
                                           per_map.mutable_data_ptr<acc_t>() + i * z.maps * z.channels,
                                           stats.mutable_data_ptr<acc_t>() + i * z.maps * 2,
                                           pooled.mutable_data_ptr<scalar_t>() + i * z.channels)) {
        finite = false;
      }
    }
  });
  return finite;
}

template <typename scalar_t>
void write_maps(const Problem<scalar_t>& problem, const Tensor& stats, const Tensor& maps) {
  using acc_t = at::opmath_type<scalar_t>;
  const RoiSizes& z = problem.size;
  const acc_t* stat = stats.const_data_ptr<acc_t>();
  acc_t* out = maps.mutable_data_ptr<acc_t>();
  at::parallel_for(0, z.images * z.groups * z.maps, std::max<int64_t>(1, 8192 / z.positions), [&](int64_t first,
                                                                                                 int64_t last) {
    Buffer<acc_t> row(kTile), bias(kTile);
    for (int64_t i = first; i < last; ++i) {
      for (int64_t start = 0; start < z.positions; start += kTile) {
        const int64_t width = std::min(kTile, z.positions - start);
        load_weights<scalar_t>(problem, i, start, width, stat + i * 2, bias, row);
        store_row<acc_t, acc_t>(row, width, out + i * z.positions + start);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_roi_pool_cpu(const Tensor& scores_in, const Tensor& values_in,
                                                             double temperature, const std::optional<Tensor>& mask_in,
                                                             bool return_maps) {
  const RoiSizes z = check_soft_roi_pool(scores_in, values_in, temperature, mask_in);
  const Tensor scores = scores_in.contiguous(), values = values_in.contiguous();
  const Tensor mask = mask_in ? mask_in->contiguous() : Tensor();
  const auto acc = scores.options().dtype(at::toOpMathType(scores.scalar_type()));
  const Tensor pooled = at::empty({z.images, z.groups, z.channels}, scores.options());
  const Tensor per_map = at::empty({z.images, z.groups, z.maps, z.channels}, acc);
  const Tensor stats = at::empty({z.images, z.groups, z.maps, 2}, acc);
  const Tensor maps = return_maps ? at::empty(scores.sizes(), acc) : at::empty({0}, acc);
  if (z.images == 0) {
    return {pooled, per_map, stats, maps};
  }
  D2OPS_DISPATCH(scores.scalar_type(), "soft_roi_pool_cpu", [&] {
    const Problem<scalar_t> problem = make_problem<scalar_t>(scores, values, mask, z, temperature);
    if (!pool<scalar_t>(problem, pooled, per_map, stats)) {
      raise_if_not_finite(kOp, {{"scores", &scores}, {"values", &values}});
    }
    if (return_maps) {
      write_maps<scalar_t>(problem, stats, maps);
    }
  });
  return {pooled, per_map, stats, maps};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2ops, m) {
  m.def(
      "soft_roi_pool(Tensor scores, Tensor values, float temperature, Tensor? mask, bool return_maps)"
      " -> (Tensor pooled, Tensor per_map, Tensor stats, Tensor maps)");
  m.def(
      "soft_roi_pool_backward(Tensor grad_pooled, Tensor? grad_maps, Tensor scores, Tensor values, Tensor? mask,"
      " Tensor per_map, Tensor stats, float temperature, bool need_scores, bool need_values)"
      " -> (Tensor grad_scores, Tensor grad_values)");
}

TORCH_LIBRARY_IMPL(d2ops, CPU, m) {
  m.impl("soft_roi_pool", soft_roi_pool_cpu);
}

}  // namespace d2ops
